"""One request and its answer: `receive` and `send` of ASGI on one side, windows and frames on the other."""

from functools import lru_cache
from typing import TYPE_CHECKING

from serving.transports.http.asgi import ANSWER, TRAILERS, Event
from serving.transports.http.byte_buffer import Chunks
from serving.transports.http.http2 import frames
from serving.transports.http.http2.flow_control import Link
from serving.transports.http.http2.frames import ErrorCode, StreamBroken
from serving.transports.http.http2.headers import Fields, write_fields, write_head

if TYPE_CHECKING:
    import asyncio

WINDOW_BYTES = 2**20  # of a request that nobody has taken yet

_CREDIT_BYTES = WINDOW_BYTES // 2
_STALL_S = 600.0  # a peer may leave its answers unread for as long
_DISCONNECT = {"type": "http.disconnect"}


class Stream:
    """A request and its answer. A class because both grow while others of the connection do."""

    __slots__ = (
        "_arrival",
        "_head",
        "_link",
        "_missing_bytes",
        "_owed_bytes",
        "_request",
        "_request_is_taken",
        "_room",
        "_trailers_follow",
        "answer_is_over",
        "more_window_bytes",
        "number",
        "request_is_over",
        "room_bytes",
        "task",
    )

    def __init__(self, link: Link, number: int, content_length: int | None) -> None:
        """Begin a request.

        Args:
            link: of its connection.
            number: of the stream.
            content_length: of the request, where it was told.
        """
        self.number = number
        self.more_window_bytes = 0  # that the peer takes of the answer, beside what it takes of each
        self.room_bytes = WINDOW_BYTES  # that the peer may send of the request
        self.task: asyncio.Task[None] | None = None
        self.request_is_over = False
        self.answer_is_over = False
        self._link = link
        self._missing_bytes = content_length
        self._request = Chunks()
        self._request_is_taken = False
        self._owed_bytes = 0  # of the room, and not yet given back
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._head = b""  # of the answer: goes with the first of its body
        self._trailers_follow = False

    # What the connection brings.

    def take(self, body: bytes, size: int, *, ends: bool) -> None:
        """A part of the request.

        Args:
            body: without padding.
            size: with it; so much of the window is used.
            ends: nothing follows.

        Raises:
            StreamBroken: more than the window, or than the length that was told.
        """
        if body:
            self._request.append(body)
        self.room_bytes -= size
        if self.room_bytes < 0:
            raise StreamBroken(ErrorCode.FLOW_CONTROL_ERROR, "more was sent than the window takes")
        if self._missing_bytes is not None:
            self._missing_bytes -= len(body)
            if self._missing_bytes < 0:
                raise StreamBroken(ErrorCode.PROTOCOL_ERROR, "the body is longer than content-length")
        if ends:
            self.end()
        else:
            self._credit(size - len(body))
            _wake(self._arrival)

    def end(self) -> None:
        """The request is over.

        Raises:
            StreamBroken: it is shorter than was told.
        """
        if self._missing_bytes:
            raise StreamBroken(ErrorCode.PROTOCOL_ERROR, "the body is shorter than content-length")
        self.request_is_over = True
        _wake(self._arrival)

    def leave(self) -> int:
        """Nothing more is taken or sent. Returns how many bytes of the request nobody has taken."""
        self.request_is_over = self.answer_is_over = True
        return len(self._request.take()) if self._request.size else 0

    def wake(self) -> None:
        """There may be room for more of the answer."""
        _wake(self._room)

    async def woken(self) -> None:
        """Wait for `wake`."""
        self._room = self._link.loop.create_future()
        await self._room

    # What the application does.

    async def receive(self) -> Event:
        """All of the request that is there; waits where there is nothing."""
        while not (
            self._request.size or self.answer_is_over or (self.request_is_over and not self._request_is_taken)
        ):
            self._arrival = self._link.loop.create_future()
            await self._arrival
        if self.answer_is_over:
            return _DISCONNECT
        body = self._request.take()
        self._link.credit(len(body))
        if self.request_is_over:
            self._request_is_taken = True
            return {"type": "http.request", "body": body, "more_body": False}
        self._credit(len(body))
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(self, event: Event) -> None:
        """Send a part of the answer; waits while the peer has no room for it.

        Raises:
            OSError: there is nobody any more.
        """
        while self._link.is_full and not self.answer_is_over:
            await self._link.wait(self, self._link.loop.time() + _STALL_S)
            self._link.wake_next()
        if self.answer_is_over:
            raise ConnectionResetError("the client has gone")
        kind = event["type"]
        if kind == ANSWER:
            await self._send_answer(event["headers"], event["body"], event["trailers"])
        elif kind == "http.response.start":
            self._head = write_head(event["status"], event["headers"])
            self._trailers_follow = event.get("trailers", False)
        elif kind == "http.response.body":
            await self._send_body(event.get("body", b""), more=event.get("more_body", False))
        elif kind == TRAILERS:
            self._end(self._link.headers(write_fields(event["headers"]), self.number, frames.END_STREAM))
        else:
            raise ValueError(f"{kind!r} is not an HTTP event")

    async def _send_answer(
        self, fields: tuple[tuple[bytes, bytes], ...], body: bytes, trailers: Fields
    ) -> None:
        """A whole answer: most often three frames that there is room for."""
        link, number, length = self._link, self.number, len(body)
        block = _block_200(fields)
        if self._fits(length):
            self.more_window_bytes -= length
            link.window_bytes -= length
            self._end(frames.answer(number, link.block(block), body, write_fields(trailers)))
            return
        link.write(link.headers(block, number, 0))
        data = self._data(await self._send_all_but_the_last(body), 0)
        self._end(data + link.headers(write_fields(trailers), number, frames.END_STREAM))
        link.wake_next()

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        link, number, head = self._link, self.number, self._head
        is_last = not (more or self._trailers_follow)
        self._head = b""
        if head and is_last and not body:
            self._end(link.headers(head, number, frames.END_STREAM))
            return
        if head:
            link.write(link.headers(head, number, 0))
        fits = self._fits(len(body))
        if not fits:
            body = await self._send_all_but_the_last(body)
        if is_last:
            self._end(self._data(body, frames.END_STREAM))
        elif body:
            link.write(self._data(body, 0))
        if not fits:
            link.wake_next()

    def _fits(self, length: int) -> bool:
        """Whether so much can be sent as one frame; nothing always can."""
        link = self._link
        return not length or (
            length <= frames.MAX_FRAME_BYTES
            and length <= link.window_bytes
            and length <= link.stream_window_bytes + self.more_window_bytes
        )

    async def _send_all_but_the_last(self, body: bytes) -> bytes:
        """Send frame by frame as there is room; returns the rest, which is one frame and fits."""
        link, start = self._link, 0
        until_s = link.loop.time() + _STALL_S
        while link.is_full or not self._fits(len(body) - start):
            window_bytes = link.stream_window_bytes + self.more_window_bytes
            room = min(link.window_bytes, window_bytes, frames.MAX_FRAME_BYTES)
            if room <= 0 or link.is_full:
                await link.wait(self, until_s)
                continue
            link.write(self._data(body[start : start + room], 0))
            link.flush()  # which says when the socket is full
            start += room
            until_s = link.loop.time() + _STALL_S
        return body[start:]

    def _data(self, body: bytes, flags: int) -> bytes:
        self.more_window_bytes -= len(body)
        self._link.window_bytes -= len(body)
        return frames.frame(frames.DATA, flags, self.number, body)

    def _end(self, last: bytes) -> None:
        self.answer_is_over = True
        self._link.write_last(last)

    def _credit(self, size: int) -> None:
        self._owed_bytes += size
        if self._owed_bytes >= _CREDIT_BYTES:
            self.room_bytes += self._owed_bytes
            self._link.write(frames.window_update(self.number, self._owed_bytes))
            self._owed_bytes = 0


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)


@lru_cache(maxsize=64)
def _block_200(fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return write_head(200, fields)
