"""One HTTP/2 connection: hands frames to its streams, answers those of the connection, and closes it.

An ASGI application answers each stream in a task.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from serving.transports.http.asgi import App, OverBudget
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.byte_budget import ByteBudget, ConnectionShare
from serving.transports.http.http2 import frames, rate_limits, stream
from serving.transports.http.http2.frame_reader import FrameReader
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, Setting
from serving.transports.http.http2.headers import MAX_HEADER_BYTES
from serving.transports.http.http2.output import Output
from serving.transports.http.http2.rate_limits import RATES, Rate, RateLimits
from serving.transports.http.http2.receive_window import ReceiveWindow
from serving.transports.http.http2.streams import MAX_STREAMS, Streams
from serving.transports.http.http2.time_limits import TimeLimits
from serving.transports.http.http2.turns import FRAME_WORK, READ_WORK, WAKE_WORK, WORK_PER_TURN, Turns
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.http.rounds import Rounds

WINDOW_BYTES = 2**24  # buffered bytes of all requests that applications have not received yet

_GOODBYE_S = 0.2  # time between the two GOAWAY of a graceful close, for clients that do not answer PING
_GOODBYE = b"goodbye!"  # its PING
_SETTINGS_PER_WORK = 10
_SETTINGS_PER_TOKEN = 32  # a frame with more counts several times; clients send up to 10

_SETTINGS = {
    Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
    Setting.INITIAL_WINDOW_SIZE: stream.WINDOW_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
}
_SERVER_PREFACE = frames.settings(_SETTINGS) + frames.window_update(
    0, WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES
)
_SETTINGS_ACK = frames.frame(frames.SETTINGS, frames.ACK, 0)


class Http2Connection(asyncio.Protocol):
    """An asyncio protocol for a client that has sent its preface."""

    def __init__(
        self,
        app: App,
        on_closed: Callable[["Http2Connection"], object],
        busy_poll: BusyPoll,
        *,
        rounds: Rounds | None = None,
        rates: Sequence[Rate] = RATES,
        budget: ByteBudget | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Serve an application.

        Args:
            app: answers requests.
            on_closed: called when the connection is closed.
            busy_poll: counts the requests of all connections.
            rounds: of all connections; default: separate ones.
            rates: of what a client may do, by the kinds of rate_limits.py.
            budget: of all connections; default: a separate one.
            limits: on the client.
        """
        self._app = app
        self._limits = limits
        self._share = ConnectionShare(budget or ByteBudget(limits.max_pending_bytes))
        self._on_closed = on_closed
        self._busy_poll = busy_poll
        self._rounds = rounds or Rounds()
        self._frames = FrameReader()
        self._transport: asyncio.Transport
        self._output: Output
        self._turns: Turns
        self._rates: RateLimits
        self._most = rates
        self._window: ReceiveWindow
        self._streams: Streams
        self._times: TimeLimits
        self._is_broken = False  # GOAWAY with an error was sent
        self._has_ended = False  # the client has sent its last byte
        self._goodbye_timer: asyncio.TimerHandle | None = None
        self._activity = (0, 0)  # at the last PING

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our settings."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._output = Output(self._transport, self._limits)
        self._turns = Turns(self._rounds, self._transport, self._read)
        self._rates = RateLimits(self._output.loop.time, self._most)
        self._window = ReceiveWindow(self._output, 0, WINDOW_BYTES)
        self._streams = Streams(
            self._app,
            output=self._output,
            window=self._window,
            share=self._share,
            turns=self._turns,
            rates=self._rates,
            busy_poll=self._busy_poll,
            on_ended=self._close_if_idle,
            on_broken=self._break,
        )
        self._output.write(_SERVER_PREFACE)
        self._times = TimeLimits(
            self._limits,
            reader=self._frames,
            turns=self._turns,
            streams=self._streams,
            window=self._window,
            output=self._output,
            close_when_idle=self.close_when_idle,
            on_broken=self._break,
        )

    def data_received(self, data: bytes) -> None:
        """Handle complete frames, as many as fit into a turn."""
        self._times.is_heard = True
        turns = self._turns
        if turns.is_waiting:  # TLS delivers what it has decrypted, although reading pauses
            self._frames.keep(data)
            self._hold_input()
        elif self._rounds.work_left < 0:
            self._frames.keep(data)
            turns.wait(has_had_turn=False)
            self._hold_input()
        elif not self._is_broken:
            turns.work_left = WORK_PER_TURN
            self._read(data)

    def eof_received(self) -> bool:
        """The client has sent its last byte; it may still read. Return whether to keep the connection."""
        self._has_ended = self._times.has_ended = True
        if not self._turns.is_waiting:
            self._on_end()
        return self._transport.get_extra_info("ssl_object") is None  # TLS closes both directions

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel all running requests."""
        self._is_broken = True
        if self._goodbye_timer is not None:
            self._goodbye_timer.cancel()
        self._output.connection_lost()
        self._share.hold_input(0)
        self._times.stop()
        del self._times  # it leads to this connection: a reference cycle
        self._streams.cancel_all()
        self._turns.stop()
        self._on_closed(self)

    def pause_writing(self) -> None:
        """The socket's buffer is over its limit."""
        self._output.pause()

    def resume_writing(self) -> None:
        """The socket has room again."""
        self._output.resume()

    # Called by the server.

    def close_when_idle(self) -> None:
        """Accept no new streams, and close the connection when the open ones have ended.

        RFC 9113, section 6.8: the first GOAWAY asks the client to open no more; the second, one round trip
        later, says which streams are handled. A client that opens streams in between does not lose them.
        """
        if self._goodbye_timer is None:
            self._output.write(frames.goaway(frames.STREAM_MASK, ErrorCode.NO_ERROR) + frames.ping(_GOODBYE))
            self._goodbye_timer = self._output.loop.call_later(_GOODBYE_S, self._say_goodbye)

    def close(self) -> None:
        """Close the connection, even if requests are running; pending output is sent."""
        self._output.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._output.abort()

    # Input.

    def _read(self, data: bytes = b"") -> None:
        """Handle complete frames until the turn is over."""
        turns, streams = self._turns, self._streams
        work = turns.work_left + READ_WORK
        try:
            for kind, number, flags, payload in self._frames.read(data):
                if kind == frames.DATA:
                    streams.on_data(number, flags, payload)
                elif kind == frames.HEADERS:
                    streams.on_headers(number, flags, payload)
                else:
                    _HANDLERS.get(kind, Http2Connection._on_unknown)(self, number, flags, payload)
                turns.work_left -= FRAME_WORK
                if turns.work_left < 0:
                    break
        except ConnectionBroken as broken:
            self._break(broken)
            return
        finally:
            self._rounds.work_left -= work - turns.work_left
        if self._frames.buffered_bytes != self._share.input_bytes:
            self._hold_input()
        if turns.work_left < 0:
            turns.wait()
            return
        if turns.is_waiting:
            turns.end(reads_on=not self._has_ended)
        if self._has_ended:
            self._on_end()

    def _hold_input(self) -> None:
        try:
            self._share.hold_input(self._frames.buffered_bytes)
        except OverBudget as error:
            # The input is one read of the socket, 256 KiB, and is handled in the next turn. A request less
            # is better than a connection less, on which a proxy may have all of its users.
            if not self._streams.make_room(self._frames.buffered_bytes, error):
                self._break(ConnectionBroken(ErrorCode.ENHANCE_YOUR_CALM, str(error)))

    def _on_end(self) -> None:
        """The client sends nothing more: requests that are not complete never will be."""
        if self._is_broken:
            return
        try:
            self._streams.cancel_incomplete()
        except ConnectionBroken as broken:
            self._break(broken)
            return
        self._output.probe()
        self._close_if_idle()

    # Frames.

    def _on_reset(self, number: int, _flags: int, payload: bytes) -> None:
        self._streams.on_reset(number, payload)

    def _on_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise _protocol_error(f"SETTINGS on stream {number}, expected 0")
        parameters = len(payload) // frames.SETTING_BYTES
        self._rates.take(rate_limits.SETTINGS, 1 + parameters // _SETTINGS_PER_TOKEN)
        self._turns.work_left -= parameters // _SETTINGS_PER_WORK
        values = frames.read_settings(payload)
        if flags & frames.ACK:
            if payload:
                raise ConnectionBroken(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS acknowledgement has settings")
            return
        window_bytes = values.get(Setting.INITIAL_WINDOW_SIZE)
        if window_bytes is not None and window_bytes != self._streams.initial_send_window_bytes:
            self._streams.change_initial_send_window(window_bytes)
        self._output.reply(_SETTINGS_ACK)

    def _on_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise _protocol_error(f"PING on stream {number}, expected 0")
        if len(payload) != frames.PING_BYTES:
            raise ConnectionBroken(
                ErrorCode.FRAME_SIZE_ERROR, f"PING has {len(payload)} bytes, expected {frames.PING_BYTES}"
            )
        # Clients that measure their bandwidth send one after each answer.
        activity = (self._streams.last_number, self._output.window_bytes)
        if activity == self._activity or flags & frames.ACK:
            self._rates.take(rate_limits.PINGS)
        self._activity = activity
        if not flags & frames.ACK:
            self._output.reply(frames.ping(payload, frames.ACK))
        elif payload == _GOODBYE and self._goodbye_timer is not None:
            self._say_goodbye()

    def _on_window_update(self, number: int, _flags: int, payload: bytes) -> None:
        more_bytes = frames.read_number(payload, "WINDOW_UPDATE") & frames.MAX_WINDOW_BYTES
        self._rates.take(rate_limits.WINDOW_UPDATES)
        if number:
            self._streams.on_window_update(number, more_bytes)
        else:
            if self._output.has_waiting:
                self._turns.work_left -= WAKE_WORK
            self._output.grow_window(more_bytes)

    def _on_priority(self, number: int, _flags: int, payload: bytes) -> None:
        self._rates.take(rate_limits.IGNORED)
        self._streams.on_priority(number, payload)

    def _on_goaway(self, number: int, _flags: int, payload: bytes) -> None:
        """The client will open no more streams. It closes the connection when it has its answers."""
        if number:
            raise _protocol_error(f"GOAWAY on stream {number}, expected 0")
        if len(payload) < frames.GOAWAY_BYTES:
            raise ConnectionBroken(
                ErrorCode.FRAME_SIZE_ERROR,
                f"GOAWAY has {len(payload)} bytes, expected at least {frames.GOAWAY_BYTES}",
            )
        self._rates.take(rate_limits.IGNORED)

    def _on_push(self, _number: int, _flags: int, _payload: bytes) -> None:
        raise _protocol_error("clients do not send PUSH_PROMISE")

    def _on_unknown(self, _number: int, _flags: int, _payload: bytes) -> None:
        """RFC 9113, section 5.5: ignored."""
        self._rates.take(rate_limits.IGNORED)

    # The end.

    def _break(self, broken: ConnectionBroken) -> None:
        if self._is_broken:
            return
        self._is_broken = True
        self._output.close_with_goaway(frames.goaway(self._streams.last_number, broken.code, str(broken)))
        self._streams.cancel_all()
        self._turns.stop()
        self._frames.forget()
        self._share.hold_input(0)

    def _say_goodbye(self) -> None:
        """Send the second GOAWAY of a graceful close."""
        if self._goodbye_timer is None or self._is_broken or not self._streams.accepts:
            return
        self._goodbye_timer.cancel()
        self._streams.accepts = False
        self._output.write(frames.goaway(self._streams.last_number, ErrorCode.NO_ERROR))
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if (self._has_ended or not self._streams.accepts) and not self._streams:
            self._output.close()


def _protocol_error(message: str) -> ConnectionBroken:
    return ConnectionBroken(ErrorCode.PROTOCOL_ERROR, message)


# DATA and HEADERS are handled in `_read`.
_HANDLERS: dict[int, Callable[[Http2Connection, int, int, bytes], None]] = {
    frames.PRIORITY: Http2Connection._on_priority,  # noqa: SLF001
    frames.RST_STREAM: Http2Connection._on_reset,  # noqa: SLF001
    frames.SETTINGS: Http2Connection._on_settings,  # noqa: SLF001
    frames.PUSH_PROMISE: Http2Connection._on_push,  # noqa: SLF001
    frames.PING: Http2Connection._on_ping,  # noqa: SLF001
    frames.GOAWAY: Http2Connection._on_goaway,  # noqa: SLF001
    frames.WINDOW_UPDATE: Http2Connection._on_window_update,  # noqa: SLF001
}
