"""One connection of HTTP/1.1, for curl, scripts and browsers, as ASGI. h11 parses and writes the bytes."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import h11

from serving.transports.http.asgi import App, Event, OverBudget, Receive, RequestRefused
from serving.transports.http.byte_budget import ByteBudget, ConnectionShare, RequestBytes
from serving.transports.http.byte_buffer import ByteBuffer
from serving.transports.http.http1_lines import connection
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.http.rounds import Rounds
from serving.transports.http.time_limits import Age, BodyRates, Duration, PeriodicCheck

_MAX_BUFFERED_BYTES = 2**20  # buffered bytes of a request that the application has not received yet
_MAX_PIPELINED_BYTES = 2**16  # bytes of the next requests
# See rounds.py: of receiving anything, of h11's and our copies, of an event: a head, a chunk, an end, and
# of a field of a head.
_READ_WORK, _BYTES_PER_WORK, _EVENT_WORK, _FIELD_WORK = 50, 500, 20, 4
_BAD_REQUEST, _REQUEST_TIMEOUT, _TOO_MANY_REQUESTS = 400, 408, 429

_log = logging.getLogger(__name__)


class Http1Connection(asyncio.Protocol):
    """An asyncio protocol. Requests are answered one after the other."""

    def __init__(
        self,
        app: App,
        on_closed: Callable[["Http1Connection"], object],
        *,
        rounds: Rounds | None = None,
        on_connected: Callable[["Http1Connection"], object] = lambda _: None,
        budget: ByteBudget | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Serve an application.

        Args:
            app: answers requests.
            on_closed: called when the connection is closed.
            rounds: of all connections; default: separate ones.
            on_connected: called when the connection is made.
            budget: of all connections; default: a separate one.
            limits: on the client.
        """
        self._app = app
        self._limits = limits
        self._share = ConnectionShare(budget or ByteBudget(limits.max_pending_bytes))
        self._on_connected = on_connected
        self._on_closed = on_closed
        self._rounds = rounds or Rounds()
        self._kept = b""  # input that waits for a round
        self._has_events = False  # h11 has input that waits for a round
        self._http = connection()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._is_tls = False
        # Of the running request, or the last one.
        self._bytes = _RequestBytes(self._share, self._receive, self._on_refused)
        self._request = ByteBuffer()
        self._request_is_over = False
        self._request_is_received = False
        self._arrival = asyncio.Event()  # set when more of the request, or its end, arrives
        self._writable = asyncio.Event()
        self._is_closing = False
        self._abort_timer: asyncio.TimerHandle | None = None
        self._requests = 0  # begun so far
        self._is_receiving = False  # whether the application waits for more of the request
        self._head, self._idle, self._rates = Duration(), Duration(), BodyRates(limits)
        self._age: Age
        self._timer: PeriodicCheck

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        self._writable.set()
        self._age = Age(self._limits, asyncio.get_running_loop().time())
        self._timer = PeriodicCheck(self._check_times, self._limits.check_interval_s)
        self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        """Handle received bytes, or keep them for the next round."""
        if self._is_waiting:  # TLS delivers what it has decrypted, although reading pauses
            self._kept += data
        elif self._rounds.work_left < 0:
            self._kept = data
            self._transport.pause_reading()
            self._rounds.join(self._take_turn, has_had_turn=False)
        elif data:  # for h11, empty bytes mean the end of the connection
            self._handle(data)

    def _take_turn(self) -> None:
        data, self._kept = self._kept, b""
        had_events, self._has_events = self._has_events, False
        if self._transport.is_closing():
            return
        if data:
            self._handle(data)
        elif had_events:
            self._handle_events()
        if self._is_closing and not self._is_waiting and not self._is_complete:
            self.close()

    def _handle(self, data: bytes) -> None:
        self._rounds.work_left -= _READ_WORK + len(data) // _BYTES_PER_WORK
        self._http.receive_data(data)
        self._handle_events()

    def eof_received(self) -> bool:
        """The client has closed its side. Without TLS, the answer to a complete request is still sent."""
        self._is_closing = True
        return (self._is_waiting or self._is_complete) and not self._is_tls

    @property
    def _is_waiting(self) -> bool:
        return self._has_events or bool(self._kept)

    @property
    def _is_complete(self) -> bool:
        return self._task is not None and self._request_is_over

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel the running request."""
        self._share.hold_input(0)
        self._timer.stop()
        del self._timer  # it leads to this connection: a reference cycle
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        if self._task is not None:
            asyncio.get_running_loop().call_soon(self._task.cancel)  # after its first step
        else:
            self._bytes.close_charge()
        self._on_closed(self)

    def pause_writing(self) -> None:
        """The socket's buffer is over its limit."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The socket has room again."""
        self._writable.set()

    # Called by the server.

    def close_when_idle(self) -> None:
        """Close the connection after the running request, if any."""
        self._is_closing = True
        if self._task is None:
            self.close()

    def close(self) -> None:
        """Close the connection when all output is written, or when the client does not read it in time."""
        if not self._transport.is_closing():
            self._abort_timer = asyncio.get_running_loop().call_later(
                self._limits.closing_s, self._transport.abort
            )
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # Times.

    def _check_times(self, now_s: float) -> None:
        limits = self._limits
        is_idle = self._task is None
        has_begun = is_idle and bool(self._http.trailing_data[0])  # a part of a head
        if self._head.of(self._requests if has_begun else None, now_s) > limits.head_s:
            self._reject(_REQUEST_TIMEOUT)
        elif self._idle.of(self._requests if is_idle else None, now_s) > limits.keep_alive_s:
            self.close()
        waits = self._is_receiving and not (self._bytes.may_pause or self._bytes.is_refused)
        self._rates.check(((self._requests, self._bytes),) if waits else (), now_s)
        self._age.check(now_s, close_when_idle=self.close_when_idle, close=self.close)

    # Requests.

    def _handle_events(self) -> None:
        try:
            while not self._has_events and isinstance(event := self._http.next_event(), h11.Event):
                self._handle_event(event)
                self._rounds.work_left -= _EVENT_WORK
                if self._rounds.work_left < 0:
                    self._wait_for_round()
        except h11.RemoteProtocolError as error:
            self._reject(error.error_status_hint or _BAD_REQUEST)
            error.__traceback__ = None  # h11's frames hold the error: a reference cycle
        self._limit_reading()

    def _wait_for_round(self) -> None:
        """Leave the other events for later: 64 KiB can hold 10,000 chunks, which take 0.2 s."""
        self._has_events = True
        self._transport.pause_reading()
        self._rounds.join(self._take_turn, has_had_turn=True)

    def _limit_reading(self) -> None:
        """Pause reading while too many bytes of this request or the next ones are buffered."""
        if self._is_waiting or self._transport.is_closing():
            return
        limit = _MAX_PIPELINED_BYTES if self._request_is_over else _MAX_BUFFERED_BYTES
        buffered_bytes = len(self._http.trailing_data[0])
        if buffered_bytes != self._share.input_bytes and not self._hold_input(buffered_bytes):
            return
        if self._request.size + buffered_bytes > limit:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _hold_input(self, size: int) -> bool:
        """Count heads and requests that were not handled yet; return whether there is room for them."""
        try:
            self._share.hold_input(size)
        except OverBudget:
            if self._task is None:
                self._reject(_TOO_MANY_REQUESTS)
            else:  # which is answered first
                self._transport.pause_reading()
            return False
        return True

    def _handle_event(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            self._rounds.work_left -= _FIELD_WORK * len(event.headers)
            self._requests += 1
            self._request_is_over = self._request_is_received = self._is_receiving = False
            self._bytes = _RequestBytes(self._share, self._receive, self._on_refused)
            self._bytes.open_charge(sum(len(name) + len(value) for name, value in event.headers))
            self._task = asyncio.get_running_loop().create_task(
                self._app(_scope(event, self._transport.get_extra_info("peername")), self._bytes, self._send)
            )
            self._task.add_done_callback(self._on_done)
        elif isinstance(event, h11.Data):
            self._bytes.received_bytes += len(event.data)
            if self._bytes.charge_body(len(event.data)):
                self._request.append(bytes(event.data))
            self._arrival.set()
        elif isinstance(event, h11.EndOfMessage):
            self._request_is_over = True
            self._arrival.set()

    def _reject(self, status: int) -> None:
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE} and not self._transport.is_closing():
            self._write(h11.Response(status_code=status, headers=[("connection", "close")]))
            self._write(h11.EndOfMessage())
        self.close()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        # ASGI: `send` raises OSError if the client has disconnected.
        if not task.cancelled() and not isinstance(error := task.exception(), OSError | None):
            _log.error("application_failed", exc_info=error)
        self._request.clear()
        self._bytes.close_charge()
        is_closing = self._is_closing or self._transport.is_closing()
        if is_closing or (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
            self.close()
            return
        self._http.start_next_cycle()
        self._handle_events()

    def _on_refused(self) -> None:
        self._request.clear()
        self._arrival.set()

    async def _receive(self) -> Event:
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        while (
            not self._request.size
            and (self._request_is_received or not self._request_is_over)
            and self._bytes.refusal is None
        ):
            self._arrival.clear()
            self._is_receiving = True
            await self._arrival.wait()
            self._is_receiving = False
        self._bytes.raise_refusal()
        body = self._request.take()
        self._request_is_received = self._request_is_over
        self._limit_reading()
        return {"type": "http.request", "body": body, "more_body": not self._request_is_over}

    async def _send(self, event: Event) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client has disconnected")
        if event["type"] == "http.response.start":
            self._write(h11.Response(status_code=event["status"], headers=list(event["headers"])))
            return
        self._write(h11.Data(data=event.get("body", b"")))
        if not event.get("more_body", False):
            self._write(h11.EndOfMessage())
        if self._writable.is_set():
            return
        try:
            held_bytes = self._bytes.hold_answer(len(event.get("body", b"")))
            async with asyncio.timeout(self._read_s(event)):
                await self._writable.wait()
        except (TimeoutError, ConnectionResetError) as error:
            self.abort()
            raise ConnectionResetError(str(error) or "the client does not read its answers") from None
        self._bytes.release(held_bytes)

    def _read_s(self, event: Event) -> float:
        """Return the time for the client to read a part of an answer."""
        size = len(event.get("body", b""))
        return self._limits.unread_answer_s + size / self._limits.min_answer_bytes_per_s

    def _write(self, event: Any) -> None:  # noqa: ANN401 - any event of h11
        data = self._http.send(event)
        if data:
            self._transport.write(data)


def _scope(request: h11.Request, client: tuple[Any, ...] | None) -> Event:
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
        "client": client,
        "extensions": {},
    }


class _RequestBytes(RequestBytes):
    """`receive` of one request."""

    __slots__ = ("_on_refused", "_receive")

    def __init__(self, share: ConnectionShare, receive: Receive, on_refused: Callable[[], object]) -> None:
        super().__init__(share)
        self._receive = receive
        self._on_refused = on_refused

    def refuse(self, refusal: RequestRefused) -> None:
        """See `RequestBytes`."""
        super().refuse(refusal)
        self._on_refused()

    def close_charge(self) -> None:
        super().close_charge()
        self._on_refused = _nothing
        self._receive = _disconnected  # a method of the connection would be a reference cycle

    async def __call__(self) -> Event:
        return await self._receive()


def _nothing() -> None:
    pass


async def _disconnected() -> Event:
    return {"type": "http.disconnect"}
