"""Detects HTTP/2 or HTTP/1.1 from the first bytes of a connection."""

import asyncio
from collections.abc import Callable
from typing import cast

from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.limits import DEFAULT_LIMITS, Limits


class ProtocolDetector(asyncio.Protocol):
    """An asyncio protocol that hands its connection over to the detected protocol."""

    def __init__(
        self,
        http2: Callable[[], asyncio.Protocol],
        http1: Callable[[], asyncio.Protocol],
        on_connected: Callable[["ProtocolDetector"], object] = lambda _: None,
        on_closed: Callable[["ProtocolDetector"], object] = lambda _: None,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Wait for a client.

        Args:
            http2: creates the protocol for clients that send the preface of HTTP/2.
            http1: creates the protocol for all other clients.
            on_connected: called when the connection is made; with TLS, after the handshake.
            on_closed: called when another protocol has taken over, or the client has disconnected.
            limits: `first_bytes_s` is the time for the client to send enough to detect its protocol.
        """
        self._http1 = http1
        self._http2 = http2
        self._on_connected = on_connected
        self._on_closed = on_closed
        self._limits = limits
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
        """Hand over as soon as the protocol is detected."""
        self._received += data
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
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._on_closed(self)
        if received:
            protocol.data_received(received)
