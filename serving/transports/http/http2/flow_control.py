"""What the streams of one connection share: the way out, and the windows of RFC 9113, section 5.2."""

import asyncio
from typing import TYPE_CHECKING

from serving.transports.http.http2 import frames

if TYPE_CHECKING:
    from serving.transports.http.http2.stream import Stream

WINDOW_BYTES = 2**24  # of all requests together that nobody has taken yet

_CREDIT_BYTES = WINDOW_BYTES // 2
_CLOSING_S = 5.0  # for the last bytes to be read
# RFC 7541, section 4.2: our table has no entries. It is said once, for peers that want theirs smaller.
_NO_TABLE = b"\x20"


class Link:
    """The way to the peer. A class because its windows belong to all streams together."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.loop = asyncio.get_running_loop()
        self.streams: dict[int, Stream] = {}  # that are open, or whose task still runs
        self.window_bytes = frames.DEFAULT_WINDOW_BYTES  # that the peer takes of all answers together
        self.stream_window_bytes = frames.DEFAULT_WINDOW_BYTES  # and of each, to begin with
        self.room_bytes = WINDOW_BYTES  # that it may send of all requests together
        self.is_full = False  # more waits to be written than the socket should hold
        self._transport = transport
        self._out: list[bytes] = []
        self._owed_bytes = 0  # of the room, and not yet given back
        self._waiting: dict[Stream, None] = {}  # for what they share; who came first first
        self._before_block = _NO_TABLE
        self._end: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        """Send frames: together with those that others send in this turn of the event loop."""
        if not self._out:
            self.loop.call_soon(self.flush)
        self._out.append(data)

    def write_last(self, data: bytes) -> None:
        """Send the last frames of a stream: at once, where it is the only one."""
        self.write(data)
        if len(self.streams) == 1:
            self.flush()

    def flush(self) -> None:
        """Send now what waits for the end of the turn."""
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def headers(self, block: bytes, stream: int, flags: int) -> bytes:
        """Frames of a block, to be written in the order in which they were asked for."""
        return frames.headers(self.block(block), stream, flags)

    def block(self, block: bytes) -> bytes:
        """A block, to be written in the order in which it was asked for."""
        if self._before_block:
            block, self._before_block = self._before_block + block, b""
        return block

    def close(self) -> None:
        """Close it when what was written is sent, or nobody reads it."""
        self.flush()
        if not self._transport.is_closing():
            self._end = self.loop.call_later(_CLOSING_S, self._transport.abort)
            self._transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    def closed(self) -> None:
        """It is closed."""
        if self._end is not None:
            self._end.cancel()

    def credit(self, size: int) -> None:
        """So much of the requests was taken: the peer may send as much again."""
        owed_bytes = self._owed_bytes = self._owed_bytes + size
        # Where little room is left, little is given back too: the rest may be held by streams that wait.
        if owed_bytes >= _CREDIT_BYTES or (owed_bytes >= self.room_bytes and owed_bytes):
            self.room_bytes += owed_bytes
            self.write(frames.window_update(0, owed_bytes))
            self._owed_bytes = 0

    @property
    def is_blocked(self) -> bool:
        """Whether no stream can send anything."""
        return self.is_full or self.window_bytes <= 0

    async def wait(self, stream: "Stream", until_s: float) -> None:
        """Wait for room for more of an answer, in the peer's windows or in the socket.

        Args:
            stream: that waits.
            until_s: on the event loop's clock.

        Raises:
            OSError: the peer reads nothing for very long.
        """
        if self.is_blocked:
            self._waiting[stream] = None
        else:
            self.wake_next()  # this one waits for its own window, and leaves what they share to the next
        try:
            async with asyncio.timeout_at(until_s):
                await stream.woken()
        except BaseException as error:
            self._waiting.pop(stream, None)
            self.wake_next()
            if not isinstance(error, TimeoutError):
                raise
            if self.is_blocked:
                self.abort()
            raise ConnectionResetError("the client does not read its answers") from None
        self._waiting.pop(stream, None)

    def wake_next(self) -> None:
        """There may be room for those who wait for it: the first is woken, and wakes the next."""
        if self._waiting and not self.is_blocked:
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            stream.wake()
