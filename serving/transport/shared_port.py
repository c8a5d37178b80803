"""One port for several processes (SO_REUSEPORT), and how it is kept for them.

The kernel deals connections out by a hash of their addresses and ports, so a few may well end up with one
process: of two connections both do half of the time. No choice by the port of the client, which a filter in
the kernel could make, does better: Linux takes the ports of outgoing connections at random too.
"""

import socket

from serving.errors import AddressUnavailable


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for processes of this user that share it. It does not listen.

    Args:
        host: as the processes will name it.
        port: 0 takes a free one.

    Raises:
        AddressUnavailable: somebody has the port, or keeps it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as alone:
            # To listen alone works only where nobody listens, and where no reservation is in the way.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            alone.listen()
        reserved = socket.socket(family, kind, protocol)
        share_port(reserved)
        # Connections that ended a moment ago are not in its way, but it is in that of others.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        raise AddressUnavailable(f"gRPC cannot listen on {host}:{port}: {error.strerror}") from error
    return reserved


def share_port(listener: socket.socket) -> None:
    """Let other processes of this user listen on the port that this socket is going to have."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
