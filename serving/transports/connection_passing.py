"""One port for several workers: the supervisor passes each connection to the worker with the fewest.

The kernel can also distribute connections (SO_REUSEPORT), by a hash of their addresses. With two workers it
gives both of two connections to the same one half of the time, and gRPC clients keep their few connections
open for a long time.

Descriptors travel over one Unix socket per worker. In the other direction, the worker reports how many of its
connections have closed; its first report means that it listens.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serving.transports.connection_accepting import ConnectionStarter, Handshakes, RefusedConnections
from serving.transports.ports import accept, listen

_REPORT = struct.Struct("=Q")  # number of closed connections
_CONNECTION = b"\0"  # sending a descriptor takes at least one byte


@dataclass(eq=False, slots=True)
class Receiver:
    """A worker that gets connections: the distributor's record of it."""

    supervisor_end: socket.socket
    worker_end: socket.socket  # which the worker inherits: close it once the worker has it
    is_listening: bool = False
    is_preferred: bool = False  # others get connections only if no preferred one takes them
    passed: int = 0  # connections passed to it
    closed: int = 0  # how many of them have closed

    @property
    def connections(self) -> int:
        """Open connections, and those on their way."""
        return self.passed - self.closed


class ConnectionDistributor:
    """The supervisor's side: listens, and passes connections to workers. `async with` binds and starts it."""

    def __init__(self, host: str, port: int, *, max_connections: int = 2**31) -> None:
        """Store the options.

        Args:
            host: address to listen on.
            port: port to listen on; 0 chooses a free one.
            max_connections: open connections of all workers; the newest are refused.
        """
        self.port = port
        self.refused = RefusedConnections()
        self._max_connections = max_connections
        self._host = host
        self._workers: list[Receiver] = []
        self._ready = asyncio.Event()  # at least one worker listens
        self._closes_with_last_worker = False
        self._listener: socket.socket
        self._distribution: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            AddressUnavailable: the port is in use.
        """
        self._listener = listen(self._host, self.port)
        self.port = self._listener.getsockname()[1]
        self._distribution = asyncio.create_task(self._distribute())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for worker in tuple(self._workers):
            self._remove(worker)
        await asyncio.wait([self._distribution])

    def add_receiver(self) -> Receiver:
        """Return the record of a new worker, which inherits a socket and gets connections once it listens."""
        supervisor_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor_end.setblocking(False)  # noqa: FBT003 - its only parameter
        worker = Receiver(supervisor_end, worker_end)
        self._workers.append(worker)
        asyncio.get_running_loop().add_reader(supervisor_end, self._read_report, worker)
        return worker

    def close_with_last_worker(self) -> None:
        """Stop listening as soon as no worker listens."""
        self._closes_with_last_worker = True
        if not self._ready.is_set():
            self._close()

    def _close(self) -> None:
        self._distribution.cancel()
        self._listener.close()

    def _read_report(self, worker: Receiver) -> None:
        try:
            report = worker.supervisor_end.recv(_REPORT.size)
        except ConnectionError:  # the worker has exited without reading all connections
            report = b""
        if not report:
            self._remove(worker)
            return
        (worker.closed,) = _REPORT.unpack(report)
        worker.is_listening = True
        self._ready.set()

    def _remove(self, worker: Receiver) -> None:
        asyncio.get_running_loop().remove_reader(worker.supervisor_end)
        worker.supervisor_end.close()
        self._workers.remove(worker)
        if not any(each.is_listening for each in self._workers):
            self._ready.clear()
            if self._closes_with_last_worker:
                self._close()

    async def _distribute(self) -> None:
        while True:
            with await accept(self._listener) as connection:
                await self._ready.wait()
                if sum(each.connections for each in self._workers) >= self._max_connections:
                    self.refused.refuse(connection, self._max_connections)
                else:
                    self._pass(connection)

    def _pass(self, connection: socket.socket) -> None:
        """Pass a connection to the preferred worker with the fewest. If no worker takes it, it is closed."""
        listening = (each for each in self._workers if each.is_listening)
        for worker in sorted(listening, key=lambda each: (not each.is_preferred, each.connections)):
            with suppress(OSError):  # the worker hangs and its socket is full, or it has exited
                socket.send_fds(worker.supervisor_end, [_CONNECTION], [connection.fileno()])
                worker.passed += 1
                return


class ConnectionReceiver:
    """A worker's side: serves the connections that its socket delivers."""

    def __init__(
        self,
        worker_socket: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        *,
        handshakes: Handshakes,
        connections: Callable[[], int],
    ) -> None:
        """Accept connections until `close`.

        Args:
            worker_socket: inherited from the supervisor.
            protocol: creates the protocol of a connection.
            handshakes: options of TLS.
            connections: returns the number of open connections.
        """
        self._socket = worker_socket
        self._starter = ConnectionStarter(protocol, handshakes, on_started=self.report)
        self._connections = connections
        self._received = 0
        self._reported = -1  # number in the last report
        worker_socket.setblocking(False)  # noqa: FBT003 - its only parameter
        asyncio.get_running_loop().add_reader(worker_socket, self._receive)
        self.report()

    def report(self) -> None:
        """Report how many connections have closed, if the number has changed."""
        closed = self._received - self._starter.starting - self._connections()
        if closed <= self._reported:  # a connection that is starting counts twice for a moment
            return
        with suppress(OSError):  # the supervisor has exited, or will read the next report
            self._socket.send(_REPORT.pack(closed))
            self._reported = closed

    def close(self) -> None:
        """Stop accepting connections, and drop those whose TLS handshake is incomplete."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._starter.close()

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, len(_CONNECTION), 1)
        except ConnectionError:
            data = b""
        if not data:  # the supervisor has exited
            asyncio.get_running_loop().remove_reader(self._socket)
            return
        self._received += 1
        if not descriptors:  # too many open files: the kernel has closed the connection
            self.report()
            return
        self._starter.start(socket.socket(fileno=descriptors[0]))
