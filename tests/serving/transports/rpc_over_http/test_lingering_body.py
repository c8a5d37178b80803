"""The body of a request that is answered before it has arrived."""

import asyncio

from serving.transports.http.asgi import Event
from serving.transports.rpc_over_http.lingering_body import LingeringBody


class Chunks:
    """A client that sends a number of chunks of 10 bytes; then it ends its request, or falls silent."""

    def __init__(self, count: int, *, ends: bool = True) -> None:
        self.left = count
        self._ends = ends

    async def receive(self) -> Event:
        """The next event."""
        if not self.left:
            await asyncio.Event().wait()
        self.left -= 1
        return {"type": "http.request", "body": bytes(10), "more_body": not self._ends or self.left > 0}


async def test_the_rest_of_a_body_is_discarded() -> None:
    """After some of it has been received, or none."""
    for received in (0, 1, 3):
        chunks = Chunks(3)
        body = LingeringBody(chunks.receive, max_bytes=100)
        for _ in range(received):
            await body.receive()
        await body.discard()
        assert chunks.left == 0


async def test_no_more_than_the_limit_is_discarded() -> None:
    """The connection then closes on a client that sends for ever."""
    chunks = Chunks(1000)
    await LingeringBody(chunks.receive, max_bytes=100).discard()
    assert chunks.left == 1000 - 11


async def test_a_client_that_falls_silent_is_not_waited_for() -> None:
    """The limit is a time, too."""
    chunks = Chunks(3, ends=False)
    await LingeringBody(chunks.receive, max_bytes=100, linger_s=0.01).discard()
    assert chunks.left == 0


async def test_a_client_that_has_disconnected_is_not_waited_for() -> None:
    """ASGI's event has no body and no more of it."""

    async def receive() -> Event:
        return {"type": "http.disconnect"}

    await LingeringBody(receive, max_bytes=100).discard()
