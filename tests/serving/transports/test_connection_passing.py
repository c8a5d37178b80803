"""Connections reach the worker with the fewest, also after workers and connections have ended."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import pytest

from serving.transports.connection_accepting import Handshakes
from serving.transports.connection_passing import ConnectionDistributor, ConnectionReceiver
from serving.transports.tls import TlsFiles
from tests.serving.log_events import LogEvents

HOST = "127.0.0.1"


class Worker:
    """A fake worker in this process. It greets clients with its name."""

    def __init__(self, name: str, worker_socket: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.name = name.encode()
        self.open: set[asyncio.BaseTransport] = set()
        self.taken = 0
        self.ended = False
        self.receiver = ConnectionReceiver(
            worker_socket,
            lambda: Greeting(self),
            handshakes=Handshakes(tls, 10.0, 5.0),
            connections=lambda: len(self.open),
        )

    def close(self) -> None:
        """Exit like a process: its sockets close."""
        if self.ended:
            return
        self.ended = True
        self.receiver.close()
        for connection in self.open:
            connection.close()


class Greeting(asyncio.Protocol):
    """A connection of a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the name."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.worker.open.add(transport)
        self.worker.taken += 1
        self.transport.write(self.worker.name)

    def connection_lost(self, _error: Exception | None) -> None:
        """Report the end."""
        self.worker.open.discard(self.transport)
        self.worker.receiver.report()


class Client:
    """A client of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, distributor: ConnectionDistributor) -> Self:
        """Connect, without waiting for a worker."""
        return cls(*await asyncio.open_connection(HOST, distributor.port))

    async def greeting(self) -> str:
        """Return the name of its worker; empty if the connection is closed."""
        async with asyncio.timeout(20):
            try:
                return (await self.reader.read(1)).decode()
            except ConnectionError:
                return ""

    async def close(self) -> None:
        """Close the connection, and wait for the other side."""
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def a_distributor(
    *, max_connections: int = 1000
) -> AsyncIterator[tuple[ConnectionDistributor, Callable[..., Worker]]]:
    """A distributor, and a function that starts a worker."""
    async with ConnectionDistributor(HOST, 0, max_connections=max_connections) as distributor:
        with ExitStack() as stack:

            def start(name: str, tls: ssl.SSLContext | None = None) -> Worker:
                worker = Worker(name, distributor.add_receiver().worker_end, tls)
                stack.callback(worker.close)
                return worker

            yield distributor, start


async def greetings(
    distributor: ConnectionDistributor, stack: AsyncExitStack, count: int
) -> list[tuple[str, Client]]:
    """Connect clients, one after another; returns the names of their workers, and the clients."""
    found = []
    for _ in range(count):
        client = await Client.connect(distributor)
        stack.push_async_callback(client.close)
        found.append((await client.greeting(), client))
    return found


async def refused(distributor: ConnectionDistributor) -> None:
    """Connect until it fails."""
    async with asyncio.timeout(20):
        while True:
            await (await Client.connect(distributor)).close()


async def until(reached: Callable[[], object]) -> None:
    """Run the event loop until a condition holds."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0)


async def test_all_workers_get_equally_many() -> None:
    """Three workers, thirty connections, ten each."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        workers = [start(name) for name in "abc"]
        names = [name for name, _ in await greetings(distributor, stack, 30)]
        assert sorted(names) == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
        assert [len(worker.open) for worker in workers] == [10, 10, 10]


async def test_a_worker_whose_connections_closed_gets_the_next() -> None:
    """Also a worker that starts later."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        first = start("a")
        start("b")
        clients = await greetings(distributor, stack, 8)
        for name, client in clients:
            if name == "a":
                await client.close()
        await until(lambda: not first.open)
        assert {name for name, _ in await greetings(distributor, stack, 4)} == {"a"}
        start("c")
        assert {name for name, _ in await greetings(distributor, stack, 4)} == {"c"}


async def test_a_worker_that_is_not_ready_gets_none_and_clients_wait() -> None:
    """Clients that connect before any worker is ready are served later."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        with distributor.add_receiver().worker_end as starting:
            clients = [await Client.connect(distributor) for _ in range(4)]
            for client in clients:
                stack.push_async_callback(client.close)
            start("a")
            assert [await client.greeting() for client in clients] == ["a"] * 4
            with pytest.raises(BlockingIOError):
                starting.recv(1, socket.MSG_DONTWAIT)


async def test_a_worker_that_exits_gets_no_more_connections() -> None:
    """Its exit does not affect the others, nor do connections that it left unread."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        start("a").close()
        start("b")
        gone = distributor.add_receiver().worker_end
        gone.send(bytes(8))  # ready, and ended before it takes its connection
        names = [name for name, _ in await greetings(distributor, stack, 1)]
        gone.close()
        names += [name for name, _ in await greetings(distributor, stack, 8)]
        assert names == ["b"] * 9


async def test_a_connection_that_no_worker_takes_is_closed() -> None:
    """A worker that hangs holds some hundred connections; the next are closed at once."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        with distributor.add_receiver().worker_end as hanging:
            hanging.send(bytes(8))
            clients: list[Client] = []
            while not any(client.reader.at_eof() for client in clients):
                clients.append(await Client.connect(distributor))
                stack.push_async_callback(clients[-1].close)
            start("a")
            assert {name for name, _ in await greetings(distributor, stack, 3)} == {"a"}


async def test_a_failed_handshake_counts_as_closed(certificates: Path) -> None:
    """Clients without TLS do not count as open connections forever."""
    tls = TlsFiles(certificates / "server.pem", certificates / "server.key").context()
    async with a_distributor() as (distributor, start):
        first = start("a", tls)
        for _ in range(3):
            plain_client = await Client.connect(distributor)
            plain_client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await plain_client.reader.read()
            await plain_client.close()
        second = start("b", tls)
        trust = ssl.create_default_context(cafile=certificates / "ca.pem")
        for _ in range(2):
            _, writer = await asyncio.open_connection(
                HOST, distributor.port, ssl=trust, server_hostname="localhost"
            )
            writer.transport.abort()
        await until(lambda: first.taken == second.taken == 1)


async def test_the_newest_connections_over_the_limit_are_refused(log_events: LogEvents) -> None:
    """The limit holds for all workers together. A place that becomes free is used. The log says it once."""
    async with AsyncExitStack() as stack, a_distributor(max_connections=3) as (distributor, start):
        workers = [start("a"), start("b")]
        found = await greetings(distributor, stack, 6)
        assert sorted(name for name, _ in found) == ["", "", "", "a", "a", "b"]
        assert distributor.refused.count == 3
        await found[0][1].close()
        await until(lambda: sum(len(worker.open) for worker in workers) == 2)
        assert [name for name, _ in await greetings(distributor, stack, 1)] != [""]
    (event,) = log_events.named("connections_refused")
    assert event.max_connections == 3


async def test_listening_ends_with_the_last_worker() -> None:
    """When a server stops: until no worker is ready."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        workers = [start("a"), start("b")]
        await greetings(distributor, stack, 2)
        distributor.close_with_last_worker()
        workers[0].close()
        assert [name for name, _ in await greetings(distributor, stack, 1)] == ["b"]
        workers[1].close()
        with pytest.raises(ConnectionError):
            await refused(distributor)


async def test_accepting_continues_once_there_are_descriptors_again(
    refuse_accepts: Callable[[], list[OSError]], log_events: LogEvents
) -> None:
    """The log says so once, and the connection is served."""
    refuse_accepts()
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        start("a")
        assert [name for name, _ in await greetings(distributor, stack, 1)] == ["a"]
    assert len(log_events.named("cannot_accept")) == 1
