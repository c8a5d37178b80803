"""Detects HTTP/2 or HTTP/1.1 from the first bytes of a connection."""

import asyncio
from collections.abc import Callable
from typing import cast

from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.http.rounds import Rounds

_HAND_OVER_WORK = 100  # see rounds.py: of creating the connection


class ProtocolDetector(asyncio.Protocol):
    """An asyncio protocol that hands its connection over to the detected protocol."""

    def __init__(
        self,
        http2: Callable[[], asyncio.Protocol],
        http1: Callable[[], asyncio.Protocol],
        on_connected: Callable[["ProtocolDetector"], object] = lambda _: None,
        on_closed: Callable[["ProtocolDetector"], object] = lambda _: None,
        *,
        rounds: Rounds | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Wait for a client.

        Args:
            http2: creates the protocol for clients that send the preface of HTTP/2.
            http1: creates the protocol for all other clients.
            on_connected: called when the connection is made; with TLS, after the handshake.
            on_closed: called when another protocol has taken over, or the client has disconnected.
            rounds: of all connections; default: separate ones.
            limits: `first_bytes_s` is the time for the client to send enough to detect its protocol.
        """
        self._http1 = http1
        self._http2 = http2
        self._on_connected = on_connected
        self._on_closed = on_closed
        self._limits = limits
        self._rounds = rounds or Rounds()
        self._is_waiting = False  # for a round
        self._has_ended = False  # the client has sent its last byte
        self._received = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait a limited time for the first bytes."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._on_connected(self)
        self._timer = asyncio.get_running_loop().call_later(self._limits.first_bytes_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Hand over as soon as the protocol is detected, or in the next round."""
        self._received += data
        if self._rounds.work_left < 0 and not self._is_waiting:
            self._is_waiting = True
            self._transport.pause_reading()
            self._rounds.join(self._take_turn, has_had_turn=False)
        elif not self._is_waiting:
            self._detect()

    def eof_received(self) -> bool:
        """The client has sent its last byte. What waits for a round is still handled."""
        self._has_ended = True
        return self._is_waiting

    def _take_turn(self) -> None:
        self._is_waiting = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._detect()

    def _detect(self) -> None:
        if self._received.startswith(PREFACE):
            self._hand_over(self._http2(), self._received[len(PREFACE) :])
        elif not PREFACE.startswith(self._received):
            self._hand_over(self._http1(), self._received)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client has disconnected before its protocol was detected."""
        self._timer.cancel()
        self._on_closed(self)

    def close(self) -> None:
        """Close the connection. No request has begun."""
        self._transport.close()

    close_when_idle = close

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _hand_over(self, protocol: asyncio.Protocol, received: bytes) -> None:
        self._timer.cancel()
        self._rounds.work_left -= _HAND_OVER_WORK
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._on_closed(self)
        if received:
            protocol.data_received(received)
        if self._has_ended and not protocol.eof_received():
            self._transport.close()
