"""Connections reach the process that has fewest, whatever becomes of processes and connections."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from serving.transports.connection_passing import ConnectionDistributor, ConnectionReceiver
from serving.transports.tls import TlsFiles
from tests.serving.conftest import LogEvents, RefuseAccepts

HOST = "127.0.0.1"


class Worker:
    """A worker that greets by its name, in this process."""

    def __init__(self, name: str, worker_socket: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.name = name.encode()
        self.open: set[asyncio.BaseTransport] = set()
        self.taken = 0
        self.ended = False
        self.receiver = ConnectionReceiver(
            worker_socket, lambda: Greeting(self), tls=tls, connections=lambda: len(self.open)
        )

    def close(self) -> None:
        """End as a process would."""
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
        """Greet."""
        self.transport: Any = transport
        self.worker.open.add(transport)
        self.worker.taken += 1
        self.transport.write(self.worker.name)

    def connection_lost(self, _error: Exception | None) -> None:
        """Report it."""
        self.worker.open.discard(self.transport)
        self.worker.receiver.report()


class Client:
    """A connection, and who greeted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, distributor: ConnectionDistributor) -> Self:
        """Connect, but wait for nobody."""
        return cls(*await asyncio.open_connection(HOST, distributor.port))

    async def greeting(self) -> str:
        """The first word; empty if nobody takes the connection."""
        async with asyncio.timeout(20):
            try:
                return (await self.reader.read(1)).decode()
            except ConnectionError:
                return ""

    async def leave(self) -> None:
        """Close it, and wait until the other end has too."""
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def a_distributor() -> AsyncIterator[tuple[ConnectionDistributor, Callable[..., Worker]]]:
    """A distributor, and what starts a worker."""
    async with ConnectionDistributor(HOST, 0) as distributor:
        with ExitStack() as stack:

            def start(name: str, tls: ssl.SSLContext | None = None) -> Worker:
                worker = Worker(name, distributor.worker_socket(), tls)
                stack.callback(worker.close)
                return worker

            yield distributor, start


async def greetings(
    distributor: ConnectionDistributor, stack: AsyncExitStack, count: int
) -> list[tuple[str, Client]]:
    """Who greets so many new clients, one after another."""
    found = []
    for _ in range(count):
        client = await Client.connect(distributor)
        stack.push_async_callback(client.leave)
        found.append((await client.greeting(), client))
    return found


async def refused(distributor: ConnectionDistributor) -> None:
    """Connect until that fails."""
    async with asyncio.timeout(20):
        while True:
            await (await Client.connect(distributor)).leave()


async def until(reached: Callable[[], object]) -> None:
    """Let the event loop run until this is so."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0)


async def test_every_process_has_as_many() -> None:
    """Three of them, thirty connections, ten each."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        workers = [start(name) for name in "abc"]
        names = [name for name, _ in await greetings(distributor, stack, 30)]
        assert sorted(names) == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
        assert [len(worker.open) for worker in workers] == [10, 10, 10]


async def test_who_has_lost_some_gets_the_next() -> None:
    """Connections that end make room, and so does a process that comes later."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        first = start("a")
        start("b")
        clients = await greetings(distributor, stack, 8)
        for name, client in clients:
            if name == "a":
                await client.leave()
        await until(lambda: not first.open)
        assert {name for name, _ in await greetings(distributor, stack, 4)} == {"a"}
        start("c")
        assert {name for name, _ in await greetings(distributor, stack, 4)} == {"c"}


async def test_a_process_that_is_not_ready_gets_none_and_nobody_is_turned_away() -> None:
    """Who connects before anybody is ready waits."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        with distributor.worker_socket() as starting:
            clients = [await Client.connect(distributor) for _ in range(4)]
            for client in clients:
                stack.push_async_callback(client.leave)
            start("a")
            assert [await client.greeting() for client in clients] == ["a"] * 4
            with pytest.raises(BlockingIOError):
                starting.recv(1, socket.MSG_DONTWAIT)


async def test_a_process_that_ends_gets_no_more() -> None:
    """Neither does its end hurt the others, nor the descriptors that it has left."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        start("a").close()
        start("b")
        gone = distributor.worker_socket()
        gone.send(bytes(8))  # ready, and ended before it takes its connection
        names = [name for name, _ in await greetings(distributor, stack, 1)]
        gone.close()
        names += [name for name, _ in await greetings(distributor, stack, 8)]
        assert names == ["b"] * 9


async def test_what_nobody_takes_is_closed() -> None:
    """A process that hangs holds some hundred connections; then clients are told, and may go elsewhere."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        with distributor.worker_socket() as hanging:
            hanging.send(bytes(8))
            clients: list[Client] = []
            while not any(client.reader.at_eof() for client in clients):
                clients.append(await Client.connect(distributor))
                stack.push_async_callback(clients[-1].leave)
            start("a")
            assert {name for name, _ in await greetings(distributor, stack, 3)} == {"a"}


async def test_a_handshake_that_fails_has_ended(certificates: Path) -> None:
    """Strangers that speak no TLS do not count as connections for ever."""
    tls = TlsFiles(certificates / "server.pem", certificates / "server.key").context()
    async with a_distributor() as (distributor, start):
        first = start("a", tls)
        for _ in range(3):
            stranger = await Client.connect(distributor)
            stranger.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await stranger.reader.read()
            await stranger.leave()
        second = start("b", tls)
        trust = ssl.create_default_context(cafile=certificates / "ca.pem")
        for _ in range(2):
            _, writer = await asyncio.open_connection(
                HOST, distributor.port, ssl=trust, server_hostname="localhost"
            )
            writer.transport.abort()
        await until(lambda: first.taken == second.taken == 1)


async def test_it_listens_no_longer_than_there_is_somebody() -> None:
    """At the end of a server: until the last process takes no more."""
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        workers = [start("a"), start("b")]
        await greetings(distributor, stack, 2)
        distributor.close_with_last_worker()
        workers[0].close()
        assert [name for name, _ in await greetings(distributor, stack, 1)] == ["b"]
        workers[1].close()
        with pytest.raises(ConnectionError):
            await refused(distributor)


async def test_a_system_without_descriptors_is_waited_for(
    refuse_accepts: RefuseAccepts, log_events: LogEvents
) -> None:
    """It is said, and the connection is taken when there are some again."""
    refuse_accepts()
    async with AsyncExitStack() as stack, a_distributor() as (distributor, start):
        start("a")
        assert [name for name, _ in await greetings(distributor, stack, 1)] == ["a"]
    assert len(log_events.named("cannot_accept")) == 1
