"""One connection of HTTP/1.1, for curl, scripts and browsers, as ASGI. h11 reads and writes the bytes."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import h11

from serving.transports.http.asgi import App, Event
from serving.transports.http.byte_buffer import Chunks

_MAX_HEADER_BYTES = 2**16
_MAX_BUFFERED_BYTES = 2**20  # of a request that nobody has taken yet
_STALL_S = 600.0  # a peer may leave its answers unread for as long
_CLOSING_S = 5.0  # for the last bytes to be read
_BAD_REQUEST = 400

_log = logging.getLogger(__name__)


class Http1Connection(asyncio.Protocol):
    """A protocol of asyncio. A class because h11 remembers where the two ends are."""

    def __init__(self, app: App, ended: Callable[["Http1Connection"], object]) -> None:
        """Serve an application.

        Args:
            app: answers requests, one after the other.
            ended: is told when the connection is no more.
        """
        self._app = app
        self._ended = ended
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADER_BYTES)
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._is_tls = False
        self._request = Chunks()
        self._request_is_over = False
        self._request_is_taken = False
        self._changed = asyncio.Event()  # something came, or went
        self._writable = asyncio.Event()
        self._is_leaving = False
        self._end: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its type
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if data:  # to h11 nothing is the end
            self._http.receive_data(data)
            self._take()

    def eof_received(self) -> bool:
        """Nothing more comes. In the clear, the answer to a whole request is still sent."""
        self._is_leaving = True
        return self._task is not None and self._request_is_over and not self._is_tls

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel what is under way."""
        if self._end is not None:
            self._end.cancel()
        if self._task is not None:
            self._task.cancel()
        self._ended(self)

    def pause_writing(self) -> None:
        """The socket is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has room."""
        self._writable.set()

    # What a server calls.

    def leave(self) -> None:
        """Close after the request under way, if there is one."""
        self._is_leaving = True
        if self._task is None:
            self.close()

    def close(self) -> None:
        """Close it whatever runs, when what was written is sent or nobody reads it."""
        if not self._transport.is_closing():
            self._end = asyncio.get_running_loop().call_later(_CLOSING_S, self._transport.abort)
            self._transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    # A request.

    def _take(self) -> None:
        try:
            while isinstance(event := self._http.next_event(), h11.Event):
                self._take_event(event)
        except h11.RemoteProtocolError as error:
            self._refuse(error)
        self._hold_back()

    def _hold_back(self) -> None:
        """Read on, unless there is much already: of this request, or behind it."""
        if self._transport.is_closing():
            return
        if self._request.size + len(self._http.trailing_data[0]) > _MAX_BUFFERED_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _take_event(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            self._request_is_over = self._request_is_taken = False
            self._task = asyncio.get_running_loop().create_task(
                self._app(_scope(event), self._receive, self._send)
            )
            self._task.add_done_callback(self._done)
        elif isinstance(event, h11.Data):
            self._request.append(bytes(event.data))
            self._changed.set()
        elif isinstance(event, h11.EndOfMessage):
            self._request_is_over = True
            self._changed.set()

    def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            status = error.error_status_hint or _BAD_REQUEST
            self._write(h11.Response(status_code=status, headers=[("connection", "close")]))
            self._write(h11.EndOfMessage())
        self.close()

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        # Of OSErrors ASGI says that there is nobody any more.
        if not task.cancelled() and not isinstance(error := task.exception(), OSError | None):
            _log.error("application_failed", exc_info=error)
        self._request.take()
        is_closing = self._is_leaving or self._transport.is_closing()
        if is_closing or (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
            self.close()
            return
        self._http.start_next_cycle()
        self._take()

    async def _receive(self) -> Event:
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        while not self._request.size and (self._request_is_taken or not self._request_is_over):
            self._changed.clear()
            await self._changed.wait()
        body = self._request.take()
        self._request_is_taken = self._request_is_over
        self._hold_back()
        return {"type": "http.request", "body": body, "more_body": not self._request_is_over}

    async def _send(self, event: Event) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if event["type"] == "http.response.start":
            self._write(h11.Response(status_code=event["status"], headers=list(event["headers"])))
            return
        self._write(h11.Data(data=event.get("body", b"")))
        if not event.get("more_body", False):
            self._write(h11.EndOfMessage())
        try:
            async with asyncio.timeout(_STALL_S):
                await self._writable.wait()
        except TimeoutError:
            self.abort()
            raise ConnectionResetError("the client does not read its answers") from None

    def _write(self, event: Any) -> None:  # noqa: ANN401 - any of h11's
        data = self._http.send(event)
        if data:
            self._transport.write(data)


def _scope(request: h11.Request) -> Event:
    path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "scheme": "http",
        "path": path.decode("latin-1"),
        "query_string": query,
        "headers": list(request.headers),
        "extensions": {},
    }
