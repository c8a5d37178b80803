"""Serves wrapped RPCs over HTTP/2, and over HTTP/1.1 for the web. Knows no message and no domain.

Here are sockets, start and stop; http2/ has what happens to a connection, grpc_app.py what happens to a call.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from serving.rpc.middleware import WireRpc
from serving.transports.connection_passing import Seat
from serving.transports.h2.connect_app import ConnectApp
from serving.transports.h2.grpc_app import GrpcApp
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.http1 import Http1Connection
from serving.transports.http.http2 import Http2Connection
from serving.transports.http.protocol_detection import ProtocolDetector
from serving.transports.ports import BACKLOG, listen
from serving.transports.tls import TlsFiles

# After the last call has ended new ones are refused as UNAVAILABLE for as long as clients need to hear it.
_REFUSING_S = 0.2
# For the last answers to be written; streams that are still open are cut after it.
_CLOSING_S = 0.5

_Peer = ProtocolDetector | Http2Connection | Http1Connection


class H2Server:
    """A server in this event loop. `async with` binds and starts it; `stop` ends it gracefully."""

    def __init__(
        self,
        rpcs: Sequence[WireRpc],
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
        seat: socket.socket | None = None,
    ) -> None:
        """Store the options.

        Args:
            rpcs: what it answers.
            host: to listen on.
            port: 0 takes a free one.
            max_message_bytes: of one request.
            tls: without it calls are in the clear.
            seat: where another process, which listens, deals connections to this one.
        """
        self.host = host
        self.port = port
        self._seat = seat
        web = ConnectApp(rpcs, max_message_bytes=max_message_bytes)
        self._app = GrpcApp(rpcs, max_message_bytes=max_message_bytes, other=web)
        self._tls = tls
        self._listening: asyncio.Server | Seat | None = None
        self._connections: set[_Peer] = set()
        self._gone = asyncio.Event()  # one of them
        self._busy_poll: BusyPoll

    async def __aenter__(self) -> Self:
        self._busy_poll = BusyPoll()
        tls = None if self._tls is None else self._tls.context()
        if self._seat is not None:
            self._listening = Seat(
                self._seat, self._detector, tls=tls, connections=lambda: len(self._connections)
            )
            return self
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._listening = await asyncio.get_running_loop().create_server(
            self._detector, sock=listener, backlog=BACKLOG, ssl=tls
        )
        return self

    def _detector(self) -> ProtocolDetector:
        return ProtocolDetector(self._begin_http2, self._begin_http1, self._connections.add, self._end)

    def _begin_http2(self) -> asyncio.Protocol:
        return self._keep(Http2Connection(self._app, self._end, self._busy_poll))

    def _begin_http1(self) -> asyncio.Protocol:
        return self._keep(Http1Connection(self._app, self._end))

    def _keep(self, connection: _Peer) -> _Peer:
        self._connections.add(connection)
        return connection

    def _end(self, connection: _Peer) -> None:
        self._connections.discard(connection)
        self._gone.set()
        if isinstance(self._listening, Seat):
            self._listening.tell()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def stop(self, *, until: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """End running calls gracefully, at most for timeout_s seconds, then say goodbye and close.

        Args:
            until: refuses new calls, and returns when nothing runs that must be waited for.
            timeout_s: after which everything is cut.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await until()
                await asyncio.sleep(_REFUSING_S)
        await self._close()

    async def _close(self) -> None:
        if self._listening is None:
            return
        self._listening.close()
        self._listening = None
        for end in ("close_when_idle", "close", "abort"):  # each more urgent than the one before
            for connection in tuple(self._connections):
                getattr(connection, end)()
            await self._all_gone(_CLOSING_S)

    async def _all_gone(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._connections:
                    self._gone.clear()
                    await self._gone.wait()
