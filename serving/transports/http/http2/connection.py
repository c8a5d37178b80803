"""One HTTP/2 connection: turns frames into streams. An ASGI application answers each stream in a task.

All frame handlers share one map of open streams, hence one file.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from serving.transports.http.asgi import App
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.byte_budget import ByteBudget, ConnectionShare
from serving.transports.http.http2 import frames, stream
from serving.transports.http.http2.frame_reader import FrameReader
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, Setting, StreamBroken
from serving.transports.http.http2.headers import MAX_HEADER_BYTES, HeaderReader
from serving.transports.http.http2.output import Output
from serving.transports.http.http2.receive_window import ReceiveWindow
from serving.transports.http.http2.stream import Http2Stream
from serving.transports.http.limits import DEFAULT_LIMITS, Limits

WINDOW_BYTES = 2**24  # buffered bytes of all requests that applications have not received yet

_MAX_STREAMS = 1024
# Limits for clients that cause work but read no replies.
_MAX_UNREAD_REPLIES = 10_000
# A change can wake all streams. Clients that measure their bandwidth make a few dozen changes.
_MAX_WINDOW_CHANGES = 1000

_SETTINGS = {
    Setting.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
    Setting.INITIAL_WINDOW_SIZE: stream.WINDOW_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
}
_SERVER_PREFACE = frames.settings(_SETTINGS) + frames.window_update(
    0, WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES
)
_SETTINGS_ACK = frames.frame(frames.SETTINGS, frames.ACK, 0)

_log = logging.getLogger(__name__)


class Http2Connection(asyncio.Protocol):
    """An asyncio protocol for a client that has sent its preface."""

    def __init__(
        self,
        app: App,
        on_closed: Callable[["Http2Connection"], object],
        busy_poll: BusyPoll,
        *,
        budget: ByteBudget | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Serve an application.

        Args:
            app: answers requests.
            on_closed: called when the connection is closed.
            busy_poll: counts the requests of all connections.
            budget: of all connections; default: a separate one.
            limits: on the client.
        """
        self._app = app
        self._limits = limits
        self._share = ConnectionShare(budget or ByteBudget(limits.max_pending_bytes))
        self._on_closed = on_closed
        self._busy_poll = busy_poll
        self._streams: dict[int, Http2Stream] = {}  # open, or with a running task
        self._output: Output
        self._window: ReceiveWindow
        self._frames = FrameReader(MAX_HEADER_BYTES)
        self._headers = HeaderReader(MAX_HEADER_BYTES)
        self._last_stream = 0  # highest number opened so far
        self._stream_send_window_bytes = frames.DEFAULT_WINDOW_BYTES  # initial send window of a new stream
        self._unread_replies = 0
        self._window_changes = 0
        self._is_closing = False

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our settings."""
        # uvloop's transports do not inherit from asyncio's.
        self._output = Output(cast("asyncio.Transport", transport))
        self._window = ReceiveWindow(self._output, 0, WINDOW_BYTES)
        self._output.write(_SERVER_PREFACE)

    def data_received(self, data: bytes) -> None:
        """Handle all complete frames."""
        try:
            for kind, number, flags, payload in self._frames.read(data):
                handle = _HANDLERS.get(kind)
                if handle is not None:  # RFC 9113, section 5.5: unknown types are ignored
                    handle(self, number, flags, payload)
        except ConnectionBroken as broken:
            self._break(broken)

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel all running requests."""
        self._output.connection_lost()
        for each in self._streams.values():
            self._cancel(each)
        self._on_closed(self)

    def pause_writing(self) -> None:
        """The socket's buffer is over its limit."""
        self._output.pause()

    def resume_writing(self) -> None:
        """The socket has room again."""
        self._unread_replies = 0
        self._output.resume()

    # Called by the server.

    def close_when_idle(self) -> None:
        """Send GOAWAY: ignore new streams, and close the connection when the open ones have ended."""
        if not self._is_closing:
            self._is_closing = True
            self._output.write(frames.goaway(self._last_stream, ErrorCode.NO_ERROR))
        self._close_if_idle()

    def close(self) -> None:
        """Close the connection, even if requests are running; pending output is sent."""
        self._output.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._output.abort()

    # Frames.

    def _on_headers(self, number: int, flags: int, block: bytes) -> None:
        ends = bool(flags & frames.END_STREAM)
        try:
            if number > self._last_stream:
                self._open(number, block, ends=ends)
            else:
                self._on_trailers(number, block, ends=ends)
        except StreamBroken as broken:
            self._reset(number, broken.code)

    def _open(self, number: int, block: bytes, *, ends: bool) -> None:
        if not number & 1:
            raise _protocol_error(f"stream {number} has an even number: clients open odd ones")
        if not self._is_closing:
            self._last_stream = number
        head = self._headers.read(block)
        if self._is_closing:
            return  # GOAWAY tells the client that this request is not handled
        if len(self._streams) >= _MAX_STREAMS:
            raise StreamBroken(ErrorCode.REFUSED_STREAM, f"{_MAX_STREAMS} streams are open, the limit")
        opened = Http2Stream(
            number,
            head.content_length,
            self._output,
            self._window,
            self._stream_send_window_bytes,
            share=self._share,
        )
        opened.open_charge()
        if ends:
            opened.end_request()
        self._streams[number] = opened
        self._busy_poll.begin()
        opened.start(self._app(head.scope, opened, opened.send), self._on_done)

    def _on_trailers(self, number: int, block: bytes, *, ends: bool) -> None:
        """Trailers of a request: not passed to applications, but they can change HPACK's table."""
        self._headers.decode(block)
        found = self._streams.get(number)
        if found is None:
            self._check_was_opened(number)
            raise StreamBroken(ErrorCode.STREAM_CLOSED, "the stream is closed")
        if found.request_is_over:
            return
        if not ends:
            raise StreamBroken(ErrorCode.PROTOCOL_ERROR, "trailers do not end the stream")
        found.end_request()

    def _on_data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        if not self._window.receive(size):
            raise ConnectionBroken(
                ErrorCode.FLOW_CONTROL_ERROR, "the client sent more than the window of the connection"
            )
        body = frames.unpadded(payload, flags & frames.PADDED) if flags & frames.PADDED else payload
        found = self._streams.get(number)
        if found is None or found.request_is_over:
            self._check_was_opened(number)
            self._window.consume(size)  # sent before the client knew that the stream had ended
            return
        if size > len(body):
            self._window.consume(size - len(body))
        try:
            found.receive_data(body, size, ends=bool(flags & frames.END_STREAM))
        except StreamBroken as broken:
            self._reset(number, broken.code)

    def _on_reset(self, number: int, _flags: int, payload: bytes) -> None:
        frames.read_number(payload, "RST_STREAM")
        self._check_was_opened(number)
        found = self._streams.get(number)
        if found is not None:
            self._cancel(found)

    def _on_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise _protocol_error(f"SETTINGS on stream {number}, expected 0")
        if flags & frames.ACK:
            if payload:
                raise ConnectionBroken(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS acknowledgement has settings")
            return
        window_bytes = frames.read_settings(payload).get(Setting.INITIAL_WINDOW_SIZE)
        if window_bytes is not None and window_bytes != self._stream_send_window_bytes:
            self._adjust_send_windows(window_bytes)
        self._reply(_SETTINGS_ACK)

    def _adjust_send_windows(self, window_bytes: int) -> None:
        """Adjust the windows of open streams by the difference: RFC 9113, section 6.9.2."""
        self._window_changes += 1
        if self._window_changes > _MAX_WINDOW_CHANGES:
            raise ConnectionBroken(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"INITIAL_WINDOW_SIZE changed more than {_MAX_WINDOW_CHANGES} times",
            )
        change_bytes = window_bytes - self._stream_send_window_bytes
        self._stream_send_window_bytes = window_bytes
        for each in self._streams.values():
            each.adjust_send_window(change_bytes)

    def _on_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise _protocol_error(f"PING on stream {number}, expected 0")
        if len(payload) != frames.PING_BYTES:
            raise ConnectionBroken(
                ErrorCode.FRAME_SIZE_ERROR, f"PING has {len(payload)} bytes, expected {frames.PING_BYTES}"
            )
        if not flags & frames.ACK:
            self._reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_window_update(self, number: int, _flags: int, payload: bytes) -> None:
        more_bytes = frames.read_number(payload, "WINDOW_UPDATE") & frames.MAX_WINDOW_BYTES
        if number == 0:
            self._output.grow_window(more_bytes)
            return
        self._check_was_opened(number)
        found = self._streams.get(number)
        if found is not None:
            try:
                found.grow_send_window(more_bytes)
            except StreamBroken as broken:
                self._reset(number, broken.code)

    def _on_push(self, _number: int, _flags: int, _payload: bytes) -> None:
        raise _protocol_error("clients do not send PUSH_PROMISE")

    def _check_was_opened(self, number: int) -> None:
        if not number & 1 or (number > self._last_stream and not self._is_closing):
            raise _protocol_error(f"stream {number} was never opened")

    # Replies, and the end of streams.

    def _reply(self, data: bytes) -> None:
        """Write the reply to a frame."""
        self._output.write(data)
        if self._output.is_full:
            self._unread_replies += 1
            if self._unread_replies > _MAX_UNREAD_REPLIES:
                raise ConnectionBroken(
                    ErrorCode.ENHANCE_YOUR_CALM,
                    f"the client has not read {_MAX_UNREAD_REPLIES} replies, the limit",
                )

    def _break(self, broken: ConnectionBroken) -> None:
        self._output.write(frames.goaway(self._last_stream, broken.code, str(broken)))
        self._output.close()
        for each in self._streams.values():
            self._cancel(each)

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._reply(frames.reset(number, code))
        found = self._streams.get(number)
        if found is not None:
            self._cancel(found)

    def _cancel(self, cancelled: Http2Stream) -> None:
        """Cancel the application of a stream. The stream counts towards the limit until that has ended."""
        self._window.consume(cancelled.cancel())

    def _on_done(self, ended: Http2Stream, task: asyncio.Task[None]) -> None:
        del self._streams[ended.number]
        ended.forget_task()
        self._busy_poll.end()
        ended.close_charge()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(
            error, OSError
        ):  # ASGI: `send` raises it if the client has disconnected
            _log.error("application_failed", exc_info=error)
        if not (ended.answer_is_over and ended.request_is_over):
            # The answer is complete, but the request is not; or there is no answer.
            code = ErrorCode.NO_ERROR if ended.answer_is_over else ErrorCode.INTERNAL_ERROR
            try:
                self._reply(frames.reset(ended.number, code))
            except ConnectionBroken as broken:
                self._break(broken)
        left_bytes = ended.end()
        if left_bytes:
            self._window.consume(left_bytes)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_closing and not self._streams:
            self._output.close()


def _protocol_error(message: str) -> ConnectionBroken:
    return ConnectionBroken(ErrorCode.PROTOCOL_ERROR, message)


# RFC 9113 deprecates PRIORITY. After GOAWAY, the client closes the connection when it has its answers.
_HANDLERS: dict[int, Callable[[Http2Connection, int, int, bytes], None]] = {
    frames.DATA: Http2Connection._on_data,  # noqa: SLF001
    frames.HEADERS: Http2Connection._on_headers,  # noqa: SLF001
    frames.RST_STREAM: Http2Connection._on_reset,  # noqa: SLF001
    frames.SETTINGS: Http2Connection._on_settings,  # noqa: SLF001
    frames.PUSH_PROMISE: Http2Connection._on_push,  # noqa: SLF001
    frames.PING: Http2Connection._on_ping,  # noqa: SLF001
    frames.WINDOW_UPDATE: Http2Connection._on_window_update,  # noqa: SLF001
}
