"""Sends frames to the client: all streams of a connection share its socket and its send window."""

import asyncio
from typing import Any

from serving.transports.http.http2 import frames
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode
from serving.transports.http.limits import DEFAULT_LIMITS, Limits

_LINGER_S = 0.5  # time for the client to read why its connection is closed
_MAX_UNREAD_REPLIES = 10_000  # for clients that cause work but read no replies
# Time between two PINGs to a client that has sent its last byte: the first two, then all others.
_FIRST_PROBE_S, _PROBE_S = 0.05, 1.0
_PROBE = frames.ping(b"anybody?")
# RFC 7541, section 4.2: our HPACK table has size 0. Sent once, for clients that set a smaller limit.
_TABLE_SIZE_0 = b"\x20"


class Output:
    """Writes the frames of all streams. Streams that wait for room continue in order of arrival."""

    def __init__(self, transport: asyncio.Transport, limits: Limits = DEFAULT_LIMITS) -> None:
        self.loop = asyncio.get_running_loop()
        self.open_streams = 0  # streams whose END_STREAM or reset has not been sent
        self.is_full = False  # the socket's buffer is over its limit
        self.resumes = 0  # how often it had room again
        self.limits = limits
        self.window_bytes = frames.DEFAULT_WINDOW_BYTES  # the connection's send window
        self._granted_bytes = self.window_bytes  # in all; minus what is left, it is what was sent
        self._transport = transport
        self.client: tuple[Any, ...] | None = transport.get_extra_info("peername")  # its address
        self._buffer: list[bytes] = []
        self._waiting: dict[asyncio.Future[None], None] = {}  # in order of arrival
        self._block_prefix = _TABLE_SIZE_0
        self._unread_replies = 0
        self._has_ended = False  # nothing is written after GOAWAY with an error
        self._abort_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    # Frames.

    def headers(self, stream: int, flags: int, block: bytes) -> bytes:
        """Return HEADERS and CONTINUATION of a header block. Must be written in the order of the calls."""
        return frames.headers(self._prefixed(block), stream, flags)

    def data(self, stream: int, flags: int, body: bytes) -> bytes:
        """Return one DATA frame, and charge it to the send window."""
        self.window_bytes -= len(body)
        return frames.frame(frames.DATA, flags, stream, body)

    def answer(self, stream: int, block: bytes, body: bytes, trailers: bytes) -> bytes:
        """Return a whole answer in three frames, charged to the send window; see `headers` for the order."""
        self.window_bytes -= len(body)
        if self._block_prefix:
            block = self._prefixed(block)
        return frames.answer(stream, block, body, trailers)

    def _prefixed(self, block: bytes) -> bytes:
        if self._block_prefix:
            block, self._block_prefix = self._block_prefix + block, b""
        return block

    # The socket.

    def write(self, data: bytes) -> None:
        """Write frames, together with all others of this iteration of the event loop."""
        if not self._buffer:
            self.loop.call_soon(self.flush)
        self._buffer.append(data)

    def reply(self, data: bytes) -> None:
        """Write the reply to a frame.

        Raises:
            ConnectionBroken: too many replies wait because the client does not read.
        """
        self.write(data)
        if self.is_full:
            self._unread_replies += 1
            if self._unread_replies > _MAX_UNREAD_REPLIES:
                raise ConnectionBroken(
                    ErrorCode.ENHANCE_YOUR_CALM,
                    f"the client has not read {_MAX_UNREAD_REPLIES} replies, the limit",
                )

    def flush(self) -> None:
        """Write the buffer now, not at the end of the iteration."""
        if self._buffer and not (self._has_ended or self._transport.is_closing()):
            self._transport.write(b"".join(self._buffer))
        self._buffer.clear()

    def close(self) -> None:
        """Close the connection when all output is written, or when the client does not read it in time."""
        self.flush()
        if not self._transport.is_closing():
            self._abort_timer = self.loop.call_later(self.limits.closing_s, self._transport.abort)
            self._transport.close()

    def close_with_goaway(self, goaway: bytes) -> None:
        """Send GOAWAY and close the connection, a moment later if the client may still be sending.

        Closing a socket that has unread bytes resets the connection: the client would not read GOAWAY.
        """
        self.write(goaway)
        self.flush()
        self._has_ended = True
        if self._transport.is_closing():
            return
        if not self._transport.can_write_eof():  # TLS
            self.close()
            return
        self._transport.pause_reading()
        self._transport.write_eof()
        self._abort_timer = self.loop.call_later(_LINGER_S, self._transport.abort)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def probe(self) -> None:
        """Write PING now and then, to find out whether a client that has sent its last byte still reads.

        TCP does not tell a client that has closed its socket from one that has only stopped writing. But the
        former's system rejects what we write, and the next write fails.
        """
        if self._probe_timer is None:
            self._probe(_FIRST_PROBE_S)

    def _probe(self, pause_s: float = _PROBE_S) -> None:
        self.write(_PROBE)
        self._probe_timer = self.loop.call_later(pause_s, self._probe)

    def connection_lost(self) -> None:
        """Stop the timers: the connection is closed."""
        for timer in (self._abort_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()

    # Flow control: the socket and the connection's send window.

    @property
    def has_waiting(self) -> bool:
        """Whether a stream waits for room."""
        return bool(self._waiting)

    @property
    def is_blocked(self) -> bool:
        """Whether no stream can send a body."""
        return self.is_full or self.window_bytes <= 0

    def pause(self) -> None:
        """The socket's buffer is over its limit."""
        self.is_full = True

    def resume(self) -> None:
        """The socket has room again."""
        self.is_full = False
        self._unread_replies = 0
        self.resumes += 1
        self.wake_next()

    def grow_window(self, more_bytes: int) -> None:
        """Increase the connection's send window.

        Raises:
            ConnectionBroken: the increment is 0, or the window exceeds the limit of RFC 9113.
        """
        if not more_bytes:
            raise ConnectionBroken(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE has increment 0")
        self.window_bytes += more_bytes
        self._granted_bytes += more_bytes
        if self.window_bytes > frames.MAX_WINDOW_BYTES:
            raise ConnectionBroken(ErrorCode.FLOW_CONTROL_ERROR, "a window is over 2^31 - 1")
        self.wake_next()

    async def wait(self, room: asyncio.Future[None], until_s: float) -> None:
        """Wait for room for more of an answer, in the socket or in a send window.

        Args:
            room: ends the wait. The stream sets it when its window grows, `wake_next` when it is the next.
            until_s: on the event loop's clock.

        Raises:
            ConnectionResetError: the client has read too little for too long.
        """
        began_s, sent_bytes = self.loop.time(), self._sent_bytes
        if self.is_blocked:
            self._waiting[room] = None
        else:
            self.wake_next()  # this stream only waits for its own window
        try:
            while not room.done():
                await asyncio.wait((room,), timeout=max(0.0, until_s - self.loop.time()))
                if not room.done():
                    self._check_progress(self._sent_bytes - sent_bytes, self.loop.time() - began_s)
                    until_s += self.limits.unread_answer_s
        except BaseException:
            self._waiting.pop(room, None)
            self.wake_next()
            raise
        self._waiting.pop(room, None)

    def _check_progress(self, sent_bytes: int, waited_s: float) -> None:
        """Let a stream wait longer for its turn while the client reads the answers of others."""
        if self.is_blocked and sent_bytes >= self.limits.min_answer_bytes_per_s * waited_s:
            return
        if self.is_blocked:
            self.abort()
        raise ConnectionResetError("the client does not read its answers")

    @property
    def _sent_bytes(self) -> int:
        """Bytes of bodies so far."""
        return self._granted_bytes - self.window_bytes

    def wake_next(self) -> None:
        """Wake the stream that has waited longest, if there is room. After sending, it wakes the next."""
        if self._waiting and not self.is_blocked:
            room = next(iter(self._waiting))
            del self._waiting[room]
            if not room.done():
                room.set_result(None)
