"""What an attack is, what it attacks, and the list of all attacks."""

import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

MIB = 2**20

# Closing sends RST instead of FIN: a closed connection leaves nothing in TIME_WAIT, so ports never run out.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Target:
    """The server as the attacker knows it, and what the attacker has done to it so far."""

    port: int
    model: str
    token: str  # empty: the attacker has none
    connections: int  # for attacks that need many
    body_bytes: int  # of one large request
    message_bytes: int  # of the largest request that the server takes
    begin: Callable[[], object] = int  # called before the first connection: what was prepared takes no time
    sent_bytes: int = 0
    connected: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)  # open ones, and some that are closed
    _forget_at: int = 1000  # sockets: closed ones are forgotten then

    def connect(self) -> socket.socket:
        """Open a connection, which `close` closes."""
        if not self.connected:
            self.begin()
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connected += 1
        self._sockets.append(connection)
        if len(self._sockets) > self._forget_at:
            self._sockets = [each for each in self._sockets if each.fileno() >= 0]
            self._forget_at = 2 * len(self._sockets) + 1000
        return connection

    def close(self) -> None:
        """Close every connection that is still open."""
        for each in self._sockets:
            each.close()


Run = Callable[[Target], None]


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack. `run` goes on until it is interrupted."""

    name: str
    does: str  # in one line: what the attacker sends
    stands_for: str  # the RFC or CVE
    run: Run
    has_token: bool = True
    is_http1: bool = False  # needs HTTP/1.1 or Connect, which grpc.aio does not speak


_GROUPS = ("control", "floods", "heads", "slow", "bodies", "images")  # modules, in the order of the table
_attacks: dict[str, Attack] = {}


def attack(
    name: str, *, does: str, stands_for: str, is_http1: bool = False, without_token: bool = False
) -> Callable[[Run], Run]:
    """Add a function to the list of attacks.

    Args:
        name: on the command line and in the table.
        does: what the attacker sends, in one line.
        stands_for: the RFC, CVE or weakness that the attack stands for.
        is_http1: the attack needs HTTP/1.1 or Connect.
        without_token: the attack is also made by a client without a token, under another name.
    """

    def add(run: Run) -> Run:
        _attacks[name] = Attack(name, does, stands_for, run, is_http1=is_http1)
        if without_token:
            bare = f"{name}-without-token"
            _attacks[bare] = Attack(
                bare, f"{does}, without a token", stands_for, run, has_token=False, is_http1=is_http1
            )
        return run

    return add


def all_attacks() -> Mapping[str, Attack]:
    """Name -> attack, in the order of the table."""
    for group in _GROUPS:
        import_module(f"tests.chaos.{group}")  # adds its attacks to the list
    return _attacks
