"""The HTTP port for operators: /metrics, /livez and /readyz, served by a separate thread."""

import asyncio
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from serving.admin.metrics_page import MetricsPage
from serving.transports.connection_accepting import (
    ConnectionAcceptor,
    ConnectionStarter,
    Handshakes,
    RefusedConnections,
)
from serving.transports.http.asgi import Event, Receive, Send
from serving.transports.http.http1 import Http1Connection
from serving.transports.http.limits import Limits
from serving.transports.ports import listen

# The same limits as for the gRPC port, for requests without bodies.
_LIMITS = Limits(max_pending_bytes=2**23)
_MAX_CONNECTIONS = 256
_STOP_S = 2.0  # for the thread to end


class HttpServer:
    """Answers scrapes and probes. Its thread only reads state that the event loop of the server writes."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        registry: CollectorRegistry,
        why_not_live: Callable[[], str],
        why_not_ready: Callable[[], str],
        limits: Limits = _LIMITS,
        max_connections: int = _MAX_CONNECTIONS,
    ) -> None:
        """Store the options.

        Args:
            host: address to listen on.
            port: port to listen on; 0 picks a free one.
            registry: metrics shown at /metrics.
            why_not_live: returns why /livez fails; nothing if it succeeds.
            why_not_ready: the same for /readyz.
            limits: on clients.
            max_connections: beyond it the oldest is closed: a probe must always get through.
        """
        self.host = host
        self.port = port
        self._metrics = MetricsPage(registry)
        self._probes = {"/livez": why_not_live, "/readyz": why_not_ready}
        self._limits = limits
        self._max_connections = max_connections
        self._connections: dict[Http1Connection, None] = {}  # the oldest first
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread

    async def __aenter__(self) -> Self:
        listener = listen(self.host, self.port, what="HTTP", option="--http-port", host_option="--http-host")
        self.port = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="http", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(self._thread.join, _STOP_S)

    # In the thread.

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        handshakes = Handshakes(None, self._limits.tls_handshake_s, self._limits.closing_s)
        acceptor = ConnectionAcceptor(
            listener,
            ConnectionStarter(self._connection, handshakes),
            max_connections=self._limits.max_connections,
            connections=lambda: len(self._connections),
            refused=RefusedConnections(),
        )
        await self._stopping.wait()
        await acceptor.close()
        for connection in tuple(self._connections):
            connection.abort()

    def _connection(self) -> Http1Connection:
        return Http1Connection(self._answer, self._close, on_connected=self._open, limits=self._limits)

    def _open(self, connection: Http1Connection) -> None:
        if len(self._connections) >= self._max_connections:
            oldest = next(iter(self._connections))
            self._close(oldest)
            oldest.abort()
        self._connections[connection] = None

    def _close(self, connection: Http1Connection) -> None:
        self._connections.pop(connection, None)

    async def _answer(self, scope: Event, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/metrics":
            await self._metrics(scope, receive, send)
        elif path not in self._probes:
            await _reply(scope, send, 404, "not found: try /metrics, /livez or /readyz")
        elif problem := self._probes[path]():
            await _reply(scope, send, 503, problem)
        else:
            await _reply(scope, send, 200, "ok")


async def _reply(scope: Event, send: Send, status: int, text: str) -> None:
    body = text.encode() + b"\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
