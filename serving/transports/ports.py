"""Listening ports: exclusive to this process, or shared by several processes (SO_REUSEPORT)."""

import asyncio
import errno
import logging
import socket
from typing import Any

from serving.addresses import join_address, without_brackets
from serving.errors import AddressUnavailable

BACKLOG = 1024  # connections waiting to be accepted

_KEEPALIVE_S = 60  # a client that acknowledges nothing for about twice as long is dropped
_KEEPALIVE_PROBES = 4

_PAUSE_S = 1.0  # pause if there is no descriptor or memory for another connection

_log = logging.getLogger(__name__)


def listen(
    host: str,
    port: int,
    *,
    what: str = "gRPC",
    option: str = "--grpc-port",
    host_option: str = "--host",
) -> socket.socket:
    """Bind and listen, with keepalive. A port in use is an error: connections are not shared.

    Args:
        host: host name or address.
        port: port to listen on; 0 chooses a free one.
        what: what listens, for the error.
        option: sets the port.
        host_option: sets the host.

    Raises:
        AddressUnavailable: the port is in use, or this machine has no such address.
    """
    try:
        listener, address = _socket(host, port)
    except (OSError, UnicodeError) as error:
        raise _unavailable(host, port, error, what=what, options=f"{option} or {host_option}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S // _KEEPALIVE_PROBES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _unavailable(host, port, error, what=what, options=f"{option} or {host_option}") from error
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    return listener


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a socket that reserves a port for processes of this user that share it. It does not listen.

    Args:
        host: the host that the processes will use.
        port: port to listen on; 0 chooses a free one.

    Raises:
        AddressUnavailable: the port is in use or reserved.
    """
    try:
        exclusive, address = _socket(host, port)
        with exclusive:
            # Without SO_REUSEPORT, listening fails if another socket listens on the port or reserves it.
            exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            exclusive.bind(address)
            exclusive.listen()
        reserved, _ = _socket(host, port)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Recently closed connections do not prevent the reservation; once made, it excludes other sockets.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except (OSError, UnicodeError) as error:
        raise _unavailable(host, port, error) from error
    return reserved


async def accept(listener: socket.socket) -> socket.socket:
    """Accept the next connection. Without descriptors or memory, retry every second."""
    while True:
        try:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            if error.errno != errno.ECONNABORTED:
                _log.error("cannot_accept", extra={"reason": str(error), "pause_s": _PAUSE_S})
                await asyncio.sleep(_PAUSE_S)
        else:
            return connection


def _socket(host: str, port: int) -> tuple[socket.socket, tuple[Any, ...]]:
    """Return a socket of the host's address family, and the address to bind it to."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        without_brackets(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    created = socket.socket(family, kind, protocol)
    if family == socket.AF_INET6:  # :: stands for IPv4 too, whatever the system's default is
        created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return created, address


def _unavailable(
    host: str,
    port: int,
    error: OSError | UnicodeError,
    *,
    what: str = "gRPC",
    options: str = "--grpc-port or --host",
) -> AddressUnavailable:
    reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
    return AddressUnavailable(
        f"{what} cannot listen on {join_address(host, port)}: {reason}; set another {options}"
    )
