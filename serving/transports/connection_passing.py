"""One port for several processes: one takes every connection, and deals it to the process that has fewest.

The kernel can deal them too (SO_REUSEPORT), by a hash of their addresses. Of two connections both then end
up with one process half of the time, and stay there, because clients of gRPC keep their few connections long.

Descriptors travel over a Unix socket for each process, its seat. The other way the process says how many of
its connections have ended so far; its first word says that it takes some.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serving.transports.ports import accept, listen

_ENDED = struct.Struct("=Q")
_CONNECTION = b"\0"  # a descriptor needs a byte to travel with


@dataclass(eq=False, slots=True)
class _Player:
    """A process, as the dealer sees it."""

    seat: socket.socket
    is_ready: bool = False
    dealt: int = 0
    ended: int = 0

    @property
    def connections(self) -> int:
        return self.dealt - self.ended


class Dealer:
    """Listens, and deals. `async with` binds and starts it."""

    def __init__(self, host: str, port: int) -> None:
        """Store the address; port 0 takes a free one."""
        self.port = port
        self._host = host
        self._players: list[_Player] = []
        self._ready = asyncio.Event()  # one of them
        self._is_ending = False
        self._listener: socket.socket
        self._dealing: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            AddressUnavailable: somebody has the port.
        """
        self._listener = listen(self._host, self.port)
        self.port = self._listener.getsockname()[1]
        self._dealing = asyncio.create_task(self._deal())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for player in tuple(self._players):
            self._lose(player)
        await asyncio.wait([self._dealing])

    def seat(self) -> socket.socket:
        """For a new process, which inherits it. It is dealt connections when it wants some."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003 - its only parameter
        player = _Player(ours)
        self._players.append(player)
        asyncio.get_running_loop().add_reader(ours, self._hear, player)
        return theirs

    def end(self) -> None:
        """Listen no longer than there is a process to deal to."""
        self._is_ending = True
        if not self._ready.is_set():
            self._close()

    def _close(self) -> None:
        self._dealing.cancel()
        self._listener.close()

    def _hear(self, player: _Player) -> None:
        try:
            said = player.seat.recv(_ENDED.size)
        except ConnectionError:  # it is gone, and left connections at its seat
            said = b""
        if not said:
            self._lose(player)
            return
        (player.ended,) = _ENDED.unpack(said)
        player.is_ready = True
        self._ready.set()

    def _lose(self, player: _Player) -> None:
        asyncio.get_running_loop().remove_reader(player.seat)
        player.seat.close()
        self._players.remove(player)
        if not any(each.is_ready for each in self._players):
            self._ready.clear()
            if self._is_ending:
                self._close()

    async def _deal(self) -> None:
        while True:
            with await accept(self._listener) as connection:
                await self._ready.wait()
                self._give(connection)

    def _give(self, connection: socket.socket) -> None:
        """Deal it to who has fewest. If nobody takes it, it is closed: nobody would answer."""
        ready = (each for each in self._players if each.is_ready)
        for player in sorted(ready, key=lambda each: each.connections):
            with suppress(OSError):  # it hangs and its seat is full, or it is gone
                socket.send_fds(player.seat, [_CONNECTION], [connection.fileno()])
                player.dealt += 1
                return


class Seat:
    """Takes what a dealer in another process deals. A class because it counts."""

    def __init__(
        self,
        seat: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        connections: Callable[[], int],
    ) -> None:
        """Take connections until `close`.

        Args:
            seat: that was inherited.
            protocol: makes the protocol of a connection.
            tls: to shake hands with; without it connections are in the clear.
            connections: how many of them are open.
        """
        self._seat = seat
        self._protocol = protocol
        self._tls = tls
        self._connections = connections
        self._taken = 0
        self._told = -1  # what was said last
        self._beginning: set[asyncio.Task[None]] = set()
        seat.setblocking(False)  # noqa: FBT003 - its only parameter
        asyncio.get_running_loop().add_reader(seat, self._take)
        self.tell()

    def tell(self) -> None:
        """Say that connections have ended."""
        ended = self._taken - len(self._beginning) - self._connections()
        if ended <= self._told:  # one that begins is counted twice for a moment
            return
        with suppress(OSError):  # the dealer is gone, or hears the next sum
            self._seat.send(_ENDED.pack(ended))
            self._told = ended

    def close(self) -> None:
        """Take no more, and none that has not shaken hands."""
        asyncio.get_running_loop().remove_reader(self._seat)
        self._seat.close()
        for task in self._beginning:
            task.cancel()

    def _take(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._seat, len(_CONNECTION), 1)
        except ConnectionError:
            data = b""
        if not data:  # the dealer is gone
            asyncio.get_running_loop().remove_reader(self._seat)
            return
        self._taken += 1
        if not descriptors:  # this process has too many: the kernel has closed it
            self.tell()
            return
        task = asyncio.create_task(self._begin(socket.socket(fileno=descriptors[0])))
        self._beginning.add(task)
        task.add_done_callback(self._begun)

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003 - its only parameter
        with suppress(OSError):  # it shakes no hand
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self._tls
            )

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        self.tell()
