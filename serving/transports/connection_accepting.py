"""Accepts connections up to a limit, and starts their protocols after the TLS handshake."""

import asyncio
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from serving.errors import forget_frames
from serving.transports.ports import accept

RESERVED_DESCRIPTORS = 256  # for everything else in this process: files, libraries, the network's threads
_LOG_INTERVAL_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Handshakes:
    """The options of TLS handshakes.

    Args:
        tls: without it connections are not encrypted.
        timeout_s: time for a handshake.
        closing_s: time for the client to confirm the end of a connection.
    """

    tls: ssl.SSLContext | None
    timeout_s: float
    closing_s: float


class ConnectionStarter:
    """Starts the protocols of accepted connections, and knows those whose handshakes are running."""

    def __init__(
        self,
        protocol: Callable[[], asyncio.Protocol],
        handshakes: Handshakes,
        on_started: Callable[[], object] = lambda: None,
    ) -> None:
        """Store the options.

        Args:
            protocol: creates the protocol of a connection.
            handshakes: options of TLS.
            on_started: called when a handshake has ended, with success or without.
        """
        self._protocol = protocol
        self._handshakes = handshakes
        self._on_started = on_started
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def starting(self) -> int:
        """Connections whose handshakes are running."""
        return len(self._tasks)

    def start(self, connection: socket.socket) -> None:
        """Start the protocol of a connection."""
        task = asyncio.create_task(self._start(connection))
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def close(self) -> None:
        """Drop connections whose handshakes are running."""
        for task in self._tasks:
            task.cancel()

    async def _start(self, connection: socket.socket) -> None:
        options = self._handshakes
        seconds = (options.timeout_s, options.closing_s) if options.tls is not None else (None, None)
        connection.setblocking(False)  # noqa: FBT003 - its only parameter
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                connection,
                ssl=options.tls,
                ssl_handshake_timeout=seconds[0],
                ssl_shutdown_timeout=seconds[1],
            )
        except OSError as error:  # the handshake failed, or took too long
            forget_frames(error)  # asyncio's frames hold the connection, and a future that holds the error

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._on_started()


class RefusedConnections:
    """Counts connections that were refused, and logs them at most every ten seconds."""

    def __init__(self, on_refused: Callable[[], object] = lambda: None) -> None:
        self.count = 0
        self._on_refused = on_refused
        self._logged = 0
        self._logged_s = float("-inf")

    def refuse(self, connection: socket.socket, limit: int) -> None:
        """Close a connection that is over the limit."""
        connection.close()
        self.count += 1
        self._on_refused()
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_INTERVAL_S:
            refused = self.count - self._logged
            _log.warning("connections_refused", extra={"connections": refused, "max_connections": limit})
            self._logged, self._logged_s = self.count, now_s


class ConnectionAcceptor:
    """Accepts connections until `close`."""

    def __init__(
        self,
        listener: socket.socket,
        starter: ConnectionStarter,
        *,
        max_connections: int,
        connections: Callable[[], int],
        refused: RefusedConnections,
    ) -> None:
        """Start accepting.

        Args:
            listener: closed by `close`.
            starter: starts accepted connections.
            max_connections: open, or in their handshake; the newest are refused.
            connections: returns the number of open connections.
            refused: counts those that are refused.
        """
        self._listener = listener
        self._starter = starter
        self._max_connections = max_connections
        self._connections = connections
        self._refused = refused
        self._task = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Stop listening, and drop connections whose TLS handshake is incomplete."""
        self._starter.close()
        self._task.cancel()
        await asyncio.wait([self._task])  # the event loop no longer watches the socket
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            connection = await accept(self._listener)
            if self._connections() + self._starter.starting >= self._max_connections:
                self._refused.refuse(connection, self._max_connections)
            else:
                self._starter.start(connection)


def fit_connections(wanted: int) -> int:
    """Raise this process's limit on open files, if need be; return how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_DESCRIPTORS
    if soft < needed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
            soft = min(needed, hard)
    fitting = min(wanted, max(soft - RESERVED_DESCRIPTORS, soft // 2, 1))
    if fitting < wanted:
        reason = f"the limit on open files is {soft}: raise it (ulimit -n, LimitNOFILE)"
        _log.warning(
            "connections_limited", extra={"max_connections": fitting, "wanted": wanted, "reason": reason}
        )
    return fitting
