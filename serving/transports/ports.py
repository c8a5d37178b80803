"""Ports to listen on: one of this process alone, or one that several share (SO_REUSEPORT)."""

import asyncio
import errno
import logging
import socket
from typing import Any

from serving.errors import AddressUnavailable

BACKLOG = 1024  # connections that wait to be accepted

_KEEPALIVE_S = 60  # a peer that is silent and does not acknowledge for about twice as long is gone
_KEEPALIVE_PROBES = 4

_PAUSE_S = 1.0  # where the system has no descriptor or memory for another connection

_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen. A port that is taken is an error, not half of the traffic; dead peers are found.

    Args:
        host: a name or an address.
        port: 0 takes a free one.

    Raises:
        AddressUnavailable: somebody has the port.
    """
    try:
        listener, address = _socket(host, port)
    except OSError as error:
        raise _refusal(host, port, error) from error
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
        raise _refusal(host, port, error) from error
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    return listener


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for processes of this user that share it. It does not listen.

    Args:
        host: as the processes will name it.
        port: 0 takes a free one.

    Raises:
        AddressUnavailable: somebody has the port, or keeps it.
    """
    try:
        alone, address = _socket(host, port)
        with alone:
            # To listen alone works only where nobody listens, and where no reservation is in the way.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            alone.listen()
        reserved, _ = _socket(host, port)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections that ended a moment ago are not in its way, but it is in that of others.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        raise _refusal(host, port, error) from error
    return reserved


async def accept(listener: socket.socket) -> socket.socket:
    """Take the next connection, once the system can."""
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
    """A socket of the family of this host, and the address to bind it to."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.socket(family, kind, protocol), address


def _refusal(host: str, port: int, error: OSError) -> AddressUnavailable:
    return AddressUnavailable(f"gRPC cannot listen on {host}:{port}: {error.strerror}")
