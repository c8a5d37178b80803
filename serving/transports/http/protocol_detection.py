"""The first bytes of a connection say which HTTP it speaks."""

import asyncio
from collections.abc import Callable
from typing import cast

from serving.transports.http.http2.frames import PREFACE

_PATIENCE_S = 60.0  # for the first bytes


class Opening(asyncio.Protocol):
    """Stands where a protocol will, until the peer has shown its own. A class because asyncio wants one."""

    def __init__(
        self,
        http2: Callable[[], asyncio.Protocol],
        http1: Callable[[], asyncio.Protocol],
        began: Callable[["Opening"], object] = lambda _: None,
        ended: Callable[["Opening"], object] = lambda _: None,
    ) -> None:
        """Wait for a peer.

        Args:
            http2: makes the protocol of one that speaks HTTP/2.
            http1: of any other.
            began: is told when there is a connection: not where a handshake fails.
            ended: is told when one of them has taken over, or nobody spoke.
        """
        self._http1 = http1
        self._http2 = http2
        self._began = began
        self._ended = ended
        self._seen = b""
        self._transport: asyncio.Transport
        self._late: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first bytes, but not for ever."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its type
        self._began(self)
        self._late = asyncio.get_running_loop().call_later(_PATIENCE_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Hand over as soon as it is clear to whom."""
        self._seen += data
        if self._seen.startswith(PREFACE):
            self._hand_over(self._http2(), self._seen[len(PREFACE) :])
        elif not PREFACE.startswith(self._seen):
            self._hand_over(self._http1(), self._seen)

    def connection_lost(self, _error: Exception | None) -> None:
        """Nobody spoke."""
        self._late.cancel()
        self._ended(self)

    def leave(self) -> None:
        """Nobody spoke, and nobody is waited for any more."""
        self._transport.close()

    close = leave

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    def _hand_over(self, protocol: asyncio.Protocol, seen: bytes) -> None:
        self._late.cancel()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._ended(self)
        if seen:
            protocol.data_received(seen)
