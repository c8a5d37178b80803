"""Serves RPCs over HTTP/2, and over HTTP/1.1 for the web: sockets, start and stop.

../http/ handles connections; grpc_app.py and connect_app.py handle calls.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from serving.rpc.handlers import Handler, Reject, uncounted
from serving.transports.connection_accepting import (
    ConnectionAcceptor,
    ConnectionStarter,
    Handshakes,
    RefusedConnections,
)
from serving.transports.connection_passing import ConnectionReceiver
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.byte_budget import ByteBudget
from serving.transports.http.http1 import Http1Connection
from serving.transports.http.http2 import Http2Connection
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.http.protocol_detection import ProtocolDetector
from serving.transports.http.rounds import Rounds
from serving.transports.ports import listen
from serving.transports.rpc_over_http.connect_app import ConnectApp
from serving.transports.rpc_over_http.grpc_app import GrpcApp
from serving.transports.tls import RenewedTls, TlsFiles
from serving.turns import Turns

# After the last call, new ones are rejected as UNAVAILABLE, long enough for clients to move to other servers.
_REJECTING_S = 0.2
# Time to write the last answers. Streams that are still open are cut afterwards.
_CLOSING_S = 0.5

_Connection = ProtocolDetector | Http2Connection | Http1Connection


class H2Server:
    """A server in this event loop. `async with` binds and starts it; `stop` ends it gracefully."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
        tls: TlsFiles | None = None,
        worker_socket: socket.socket | None = None,
        on_refused_connection: Callable[[], object] = lambda: None,
        on_refused_request: Callable[[str], object] = lambda _: None,
        reject_unknown: Reject = uncounted,
        turns: Turns | None = None,
    ) -> None:
        """Store the options.

        Args:
            handlers: handlers of all RPCs.
            host: address to listen on.
            port: port to listen on; 0 chooses a free one.
            max_message_bytes: maximum size of a request.
            limits: on clients.
            tls: without it calls are not encrypted.
            worker_socket: delivers connections from another process, which listens instead of this one.
            on_refused_connection: called when a connection is over the limit.
            on_refused_request: called with the reason when a request holds too many bytes or is too slow.
            reject_unknown: counts calls of unknown methods.
            turns: shared with all long work in this event loop.
        """
        self.host = host
        self.port = port
        self._limits = limits
        self._budget = ByteBudget(limits.max_pending_bytes, on_refused_request)
        self._worker_socket = worker_socket
        self._on_refused_connection = on_refused_connection
        turns = turns or Turns()
        web = ConnectApp(
            handlers, max_message_bytes=max_message_bytes, reject_unknown=reject_unknown, turns=turns
        )
        self._app = GrpcApp(
            handlers,
            max_message_bytes=max_message_bytes,
            other=web,
            reject_unknown=reject_unknown,
            turns=turns,
        )
        self._tls = None if tls is None else RenewedTls(tls)
        self._listening: ConnectionAcceptor | ConnectionReceiver | None = None
        self._connections: set[_Connection] = set()
        self._closed = asyncio.Event()  # exactly one of them is set
        self._busy_poll: BusyPoll
        self._rounds: Rounds

    @property
    def open_connections(self) -> int:
        """Open connections, without those in their TLS handshake."""
        return len(self._connections)

    @property
    def pending_bytes(self) -> int:
        """Bytes of requests that are received and not yet answered."""
        return self._budget.pending_bytes

    def reload_tls(self) -> None:
        """Load the TLS files again, for new connections.

        Raises:
            UsageError: they are invalid; the old ones stay in use.
        """
        if self._tls is not None:
            self._tls.reload()

    async def __aenter__(self) -> Self:
        self._busy_poll = BusyPoll()
        self._rounds = Rounds()
        limits = self._limits
        tls = None if self._tls is None else self._tls.context
        handshakes = Handshakes(tls, limits.tls_handshake_s, limits.closing_s)
        if self._worker_socket is not None:
            self._listening = ConnectionReceiver(
                self._worker_socket, self._detector, handshakes=handshakes, connections=self._count
            )
            return self
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._listening = ConnectionAcceptor(
            listener,
            ConnectionStarter(self._detector, handshakes),
            max_connections=limits.max_connections,
            connections=self._count,
            refused=RefusedConnections(self._on_refused_connection),
        )
        return self

    def _count(self) -> int:
        return len(self._connections)

    def _detector(self) -> ProtocolDetector:
        return ProtocolDetector(
            self._http2,
            self._http1,
            self._connections.add,
            self._on_closed,
            rounds=self._rounds,
            limits=self._limits,
        )

    def _http2(self) -> asyncio.Protocol:
        return self._add(
            Http2Connection(
                self._app,
                self._on_closed,
                self._busy_poll,
                rounds=self._rounds,
                budget=self._budget,
                limits=self._limits,
            )
        )

    def _http1(self) -> asyncio.Protocol:
        return self._add(
            Http1Connection(
                self._app,
                self._on_closed,
                rounds=self._rounds,
                budget=self._budget,
                limits=self._limits,
            )
        )

    def _add(self, connection: _Connection) -> _Connection:
        self._connections.add(connection)
        return connection

    def _on_closed(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._closed.set()
        if isinstance(self._listening, ConnectionReceiver):
            self._listening.report()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def stop(self, *, until: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """Let running calls end, for at most timeout_s seconds, then close all connections.

        Args:
            until: rejects new calls, and returns when all running ones have ended.
            timeout_s: limit after which running calls are cut.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await until()
                await asyncio.sleep(_REJECTING_S)
        await self._close()

    async def _close(self) -> None:
        listening, self._listening = self._listening, None
        if listening is None:
            return
        if isinstance(listening, ConnectionAcceptor):
            await listening.close()
        else:
            listening.close()
        for close in ("close_when_idle", "close", "abort"):  # in order of urgency
            for connection in tuple(self._connections):
                getattr(connection, close)()
            await self._wait_closed(_CLOSING_S)

    async def _wait_closed(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._connections:
                    self._closed.clear()
                    await self._closed.wait()
