"""What only real sockets show: clients that stop writing or are gone, and answers that race with requests."""

import asyncio

import pytest

from serving.transports.http.asgi import Event, Receive, Send
from serving.transports.http.http2 import frames
from serving.transports.http.http2.frames import DATA, END_STREAM, HEADERS, RST_STREAM, ErrorCode, frame
from tests.serving.transports.http.http2.applications import HEAD, START, body_event
from tests.serving.transports.http.http2.sockets import connect, open_server

PATIENCE_S = 20  # longer than any of this takes


class Slow:
    """An application that answers when it may, and says when it was started or cancelled."""

    def __init__(self) -> None:
        self.started, self.may_end, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, _scope: Event, _receive: Receive, send: Send) -> None:
        """Answer after `may_end`."""
        self.started.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await send(START)
        await send(body_event(b"answer"))


async def test_a_client_that_shuts_its_writing_side_gets_its_answer() -> None:
    """Whole requests are answered, incomplete ones are reset; then the server closes."""
    slow = Slow()
    async with asyncio.timeout(PATIENCE_S), open_server(slow) as port, connect(port) as client:
        client.send(frame(HEADERS, 5, 1, HEAD), frame(HEADERS, 4, 3, HEAD))
        client.writer.write_eof()
        got: list[tuple[int, int, bytes]] = []
        while (RST_STREAM, 3, int(ErrorCode.CANCEL).to_bytes(4)) not in got:
            kind, _, stream, payload = await client.next_frame()
            got.append((kind, stream, payload))
        slow.may_end.set()
        await client.end_of(1)
        with pytest.raises(asyncio.IncompleteReadError):
            await client.goaway()  # the connection is closed without


async def test_a_client_that_is_gone_is_noticed_although_its_request_was_complete() -> None:
    """TCP shows the same end of input for one that only stops writing: PING makes the difference."""
    slow = Slow()
    async with asyncio.timeout(PATIENCE_S), open_server(slow) as port:
        async with connect(port) as client:
            client.send(frame(HEADERS, 5, 1, HEAD))
            await slow.started.wait()
        await slow.cancelled.wait()


async def test_a_client_may_open_the_next_stream_as_soon_as_it_sees_the_end_of_an_answer() -> None:
    """It has 1024 calls in flight, as SETTINGS allow, until 4,000 are answered: none is refused."""

    async def answer_and_return_later(_scope: Event, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(body_event(b"answer"))
        for _ in range(10):
            await asyncio.sleep(0)

    at_once, total = 1024, 4000
    app = answer_and_return_later
    async with asyncio.timeout(PATIENCE_S), open_server(app) as port, connect(port) as client:
        client.send(*(frame(HEADERS, 5, 2 * index + 1, HEAD) for index in range(at_once)))
        opened, answered, refused = at_once, 0, 0
        client.send(frames.window_update(0, 2**20))
        while answered + refused < total:
            kind, flags, _, _ = await client.next_frame()
            if (kind == DATA and flags & END_STREAM) or kind == RST_STREAM:
                refused += kind == RST_STREAM
                answered += kind == DATA
                if opened < total:
                    client.send(frame(HEADERS, 5, 2 * opened + 1, HEAD))
                    opened += 1
    assert (answered, refused) == (total, 0)
