"""One connection of HTTP/2: frames become streams, each of which an ASGI application answers in a task."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import cast

from serving.transports.http.asgi import App
from serving.transports.http.busy_poll import Awake
from serving.transports.http.http2 import flow_control as link
from serving.transports.http.http2 import frames, stream
from serving.transports.http.http2.flow_control import Link
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, Setting, StreamBroken
from serving.transports.http.http2.headers import HeadReader
from serving.transports.http.http2.stream import Stream

_MAX_STREAMS = 1024
_MAX_HEADER_BYTES = 2**15
_MAX_CONTINUATIONS = 16
# Of a peer that asks on and on, and reads nothing.
_MAX_UNREAD_REPLIES = 10_000
# Each may wake all streams. Clients that measure their line change it a few dozen times.
_MAX_WINDOW_CHANGES = 1000

_SETTINGS = {
    Setting.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
    Setting.INITIAL_WINDOW_SIZE: stream.WINDOW_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
}
_HELLO = frames.settings(_SETTINGS) + frames.window_update(0, link.WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)
_SETTINGS_TAKEN = frames.frame(frames.SETTINGS, frames.ACK, 0)

_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """A protocol of asyncio. A class because what comes is understood by what came before."""

    def __init__(self, app: App, ended: Callable[["Connection"], object], awake: Awake) -> None:
        """Serve an application.

        Args:
            app: answers requests.
            ended: is told when the connection is no more.
            awake: counts the requests of all connections.
        """
        self._app = app
        self._ended = ended
        self._awake = awake
        self._link: Link
        self._reader = HeadReader(_MAX_HEADER_BYTES)
        self._rest = b""  # of a frame that is not complete
        self._last = 0  # stream that was opened
        self._only: int | None = frames.SETTINGS  # the kind of frame that has to come next
        self._block: list[bytes] = []  # of a head that goes on in the next frame
        self._block_head = (0, 0)  # its stream and flags
        self._unread_replies = 0
        self._window_changes = 0
        self._is_leaving = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, after the peer's preface."""
        self._link = Link(cast("asyncio.Transport", transport))  # uvloop's own is none by its type
        self._link.write(_HELLO)

    def data_received(self, data: bytes) -> None:
        """Take all frames that are complete."""
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._take(data) :]
        except ConnectionBroken as broken:
            self._break(broken)

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel what is under way."""
        self._link.closed()
        for each in self._link.streams.values():
            self._drop(each)
        self._ended(self)

    def pause_writing(self) -> None:
        """The socket is full."""
        self._link.is_full = True

    def resume_writing(self) -> None:
        """It has room."""
        self._unread_replies = 0
        self._link.is_full = False
        self._link.wake_next()

    # What a server calls.

    def leave(self) -> None:
        """Say goodbye: new streams are not taken, and the connection closes when the open ones have ended."""
        if not self._is_leaving:
            self._is_leaving = True
            self._link.write(frames.goaway(self._last, ErrorCode.NO_ERROR))
        self._close_if_done()

    def close(self) -> None:
        """Close it whatever runs; what was written is sent."""
        self._link.close()

    def abort(self) -> None:
        """Close it at once."""
        self._link.abort()

    # Frames.

    def _take(self, data: bytes) -> int:
        """Take frames; returns how many bytes they were."""
        offset, end = 0, len(data)
        size, unpack = frames.HEAD.size, frames.HEAD.unpack_from
        while end - offset >= size:
            high, low, kind, flags, number = unpack(data, offset)
            length = high << 16 | low
            if length > frames.MAX_FRAME_BYTES:
                raise ConnectionBroken(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = offset + size
            if start + length > end:
                break
            offset = start + length
            if self._only is not None and kind != self._only:
                raise _broken(f"a frame of type {kind}, expected {self._only}")
            take = _TAKE.get(kind)
            if take is not None:  # others are for extensions that are not known here
                take(self, number & frames.STREAM_MASK, flags, data[start:offset])
        return offset

    def _take_data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._link.room_bytes -= size
        if self._link.room_bytes < stream.WINDOW_BYTES:
            if self._link.room_bytes < 0:
                raise ConnectionBroken(ErrorCode.FLOW_CONTROL_ERROR, "more was sent than the window takes")
            self._link.credit(0)
        body = frames.unpadded(payload, flags & frames.PADDED) if flags & frames.PADDED else payload
        found = self._link.streams.get(number)
        if found is None or found.request_is_over:
            self._check_was_open(number)
            self._link.credit(size)  # we have left it, and the peer did not know
            return
        if size > len(body):
            self._link.credit(size - len(body))
        try:
            found.take(body, size, ends=bool(flags & frames.END_STREAM))
        except StreamBroken as broken:
            self._reset(number, broken.code)

    def _take_headers(self, number: int, flags: int, payload: bytes) -> None:
        block = payload
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            block = frames.unpadded(payload, flags)
        if flags & frames.END_HEADERS:
            self._take_block(number, flags, block)
        else:
            self._block, self._block_head, self._only = [block], (number, flags), frames.CONTINUATION

    def _take_continuation(self, number: int, flags: int, payload: bytes) -> None:
        if not self._block or number != self._block_head[0]:
            raise _broken("CONTINUATION without HEADERS")
        self._block.append(payload)
        if len(self._block) > _MAX_CONTINUATIONS or sum(map(len, self._block)) > _MAX_HEADER_BYTES:
            raise ConnectionBroken(ErrorCode.ENHANCE_YOUR_CALM, "a head that is too long")
        if flags & frames.END_HEADERS:
            block, self._block, self._only = b"".join(self._block), [], None
            self._take_block(number, self._block_head[1], block)

    def _take_block(self, number: int, flags: int, block: bytes) -> None:
        ends = bool(flags & frames.END_STREAM)
        try:
            if number > self._last:
                self._open(number, block, ends=ends)
            else:
                self._take_trailers(number, block, ends=ends)
        except StreamBroken as broken:
            self._reset(number, broken.code)

    def _open(self, number: int, block: bytes, *, ends: bool) -> None:
        if not number & 1:
            raise _broken(f"stream {number} is not a client's")
        streams = self._link.streams
        if not self._is_leaving:
            self._last = number
        head = self._reader.read(block)
        if self._is_leaving:
            return  # its client knows from GOAWAY that nobody has seen it
        if len(streams) >= _MAX_STREAMS:
            raise StreamBroken(ErrorCode.REFUSED_STREAM, "too many streams")
        opened = Stream(self._link, number, head.content_length)
        if ends:
            opened.end()
        streams[number] = opened
        self._awake.begin()
        opened.task = self._link.loop.create_task(self._app(head.scope, opened.receive, opened.send))
        opened.task.add_done_callback(partial(self._done, opened))

    def _take_trailers(self, number: int, block: bytes, *, ends: bool) -> None:
        """What a request says after its body: nobody asks for it, but it changes the table of names."""
        self._reader.decode(block)
        found = self._link.streams.get(number)
        if found is None:
            self._check_was_open(number)
            raise StreamBroken(ErrorCode.STREAM_CLOSED, "the stream is closed")
        if found.request_is_over:
            return
        if ends:
            found.end()
        else:
            raise StreamBroken(ErrorCode.PROTOCOL_ERROR, "trailers do not end the stream")

    def _take_reset(self, number: int, _flags: int, payload: bytes) -> None:
        frames.read_number(payload, "RST_STREAM")
        self._check_was_open(number)
        found = self._link.streams.get(number)
        if found is not None:
            self._drop(found)

    def _take_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise _broken("SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionBroken(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS that acknowledge and set")
            if self._only is not None:
                raise _broken("SETTINGS are acknowledged before there are any")
            return
        self._only = None
        window_bytes = frames.read_settings(payload).get(Setting.INITIAL_WINDOW_SIZE)
        if window_bytes is not None and window_bytes != self._link.stream_window_bytes:
            self._change_windows(window_bytes)
        self._reply(_SETTINGS_TAKEN)

    def _change_windows(self, window_bytes: int) -> None:
        self._window_changes += 1
        if self._window_changes > _MAX_WINDOW_CHANGES:
            raise ConnectionBroken(ErrorCode.ENHANCE_YOUR_CALM, "windows change too often")
        self._link.stream_window_bytes = window_bytes
        for each in self._link.streams.values():
            _check_window(window_bytes + each.more_window_bytes)
            each.wake()

    def _take_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise _broken("PING of a stream")
        if len(payload) != frames.PING_BYTES:
            raise ConnectionBroken(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if not flags & frames.ACK:
            self._reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _take_window_update(self, number: int, _flags: int, payload: bytes) -> None:
        more = frames.read_number(payload, "WINDOW_UPDATE") & frames.MAX_WINDOW_BYTES
        if number == 0:
            if not more:
                raise _broken("WINDOW_UPDATE by nothing")
            self._link.window_bytes += more
            _check_window(self._link.window_bytes)
            self._link.wake_next()
            return
        self._check_was_open(number)
        found = self._link.streams.get(number)
        if found is None:
            return
        found.more_window_bytes += more
        if not more or self._link.stream_window_bytes + found.more_window_bytes > frames.MAX_WINDOW_BYTES:
            self._reset(number, ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR)
        else:
            found.wake()

    def _take_push(self, _number: int, _flags: int, _payload: bytes) -> None:
        raise _broken("a client does not push")

    # Ends.

    def _check_was_open(self, number: int) -> None:
        if not number & 1 or (number > self._last and not self._is_leaving):
            raise _broken(f"stream {number} was never opened")

    def _reply(self, data: bytes) -> None:
        """Send what the peer made us send."""
        self._link.write(data)
        if self._link.is_full:
            self._unread_replies += 1
            if self._unread_replies > _MAX_UNREAD_REPLIES:
                raise ConnectionBroken(ErrorCode.ENHANCE_YOUR_CALM, "much is asked and nothing read")

    def _break(self, broken: ConnectionBroken) -> None:
        self._rest = b""
        self._link.write(frames.goaway(self._last, broken.code, str(broken)))
        self._link.close()
        for each in self._link.streams.values():
            self._drop(each)

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._reply(frames.reset(number, code))
        found = self._link.streams.get(number)
        if found is not None:
            self._drop(found)

    def _drop(self, dropped: Stream) -> None:
        """End what runs for a stream. It stays open until that has ended: resets make no room for more."""
        self._link.credit(dropped.leave())
        if dropped.task is not None:
            dropped.task.cancel()

    def _done(self, ended: Stream, task: "asyncio.Task[None]") -> None:
        del self._link.streams[ended.number]
        self._awake.end()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError):  # of which ASGI says that the peer has gone
            _log.error("application_failed", exc_info=error)
        if not (ended.answer_is_over and ended.request_is_over):
            # The answer is complete and the rest of the request not wanted; or there is no answer.
            code = ErrorCode.NO_ERROR if ended.answer_is_over else ErrorCode.INTERNAL_ERROR
            try:
                self._reply(frames.reset(ended.number, code))
            except ConnectionBroken as broken:
                self._break(broken)
        left = ended.leave()
        if left:
            self._link.credit(left)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._is_leaving and not self._link.streams:
            self._link.close()


def _broken(message: str) -> ConnectionBroken:
    return ConnectionBroken(ErrorCode.PROTOCOL_ERROR, message)


def _check_window(window_bytes: int) -> None:
    if window_bytes > frames.MAX_WINDOW_BYTES:
        raise ConnectionBroken(ErrorCode.FLOW_CONTROL_ERROR, "a window is over 2^31 - 1")


# PRIORITY means nothing any more, and after GOAWAY the peer closes when it has its answers.
_TAKE: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    frames.DATA: Connection._take_data,  # noqa: SLF001
    frames.HEADERS: Connection._take_headers,  # noqa: SLF001
    frames.RST_STREAM: Connection._take_reset,  # noqa: SLF001
    frames.SETTINGS: Connection._take_settings,  # noqa: SLF001
    frames.PUSH_PROMISE: Connection._take_push,  # noqa: SLF001
    frames.PING: Connection._take_ping,  # noqa: SLF001
    frames.WINDOW_UPDATE: Connection._take_window_update,  # noqa: SLF001
    frames.CONTINUATION: Connection._take_continuation,  # noqa: SLF001
}
