"""A port of one process, or one that is reserved for several."""

import socket
from collections.abc import Callable

import pytest

from serving.errors import AddressUnavailable
from serving.transports.ports import listen, reserve_port


def _listen(address: tuple[str, int], *, shared: bool) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    listener.listen()
    return listener


def test_several_listen_on_a_reserved_port_and_get_all_connections() -> None:
    """The socket that reserves the port gets none."""
    with reserve_port("127.0.0.1", 0) as reserved:
        address = reserved.getsockname()
        with _listen(address, shared=True) as first, _listen(address, shared=True) as second:
            clients = [socket.create_connection(address) for _ in range(32)]
            accepted = 0
            for listener in (first, second):
                listener.settimeout(0)
                while True:
                    try:
                        listener.accept()[0].close()
                    except BlockingIOError:
                        break
                    accepted += 1
            for client in clients:
                client.close()
    assert accepted == 32


@pytest.mark.parametrize("take", [listen, reserve_port])
def test_a_port_in_use_is_an_error_with_its_number(take: Callable[[str, int], socket.socket]) -> None:
    """Otherwise two servers would share its traffic."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressUnavailable, match=f"gRPC cannot listen on 127.0.0.1:{port}: Address"):
            take("127.0.0.1", port)


@pytest.mark.parametrize("listening", [True, False])
def test_a_reserved_port_cannot_be_reserved_again(*, listening: bool) -> None:
    """Two servers of one user do not share by mistake, even before the first has workers."""
    with reserve_port("127.0.0.1", 0) as reserved:
        address = reserved.getsockname()
        workers = [_listen(address, shared=True)] if listening else []
        with pytest.raises(AddressUnavailable, match="Address already in use"):
            reserve_port(*address)
        for worker in workers:
            worker.close()


def test_recently_closed_connections_do_not_block_a_port() -> None:
    """A restarted server gets its port while the kernel holds connections in TIME_WAIT."""
    with reserve_port("127.0.0.1", 0) as reserved:
        address = reserved.getsockname()
        with _listen(address, shared=True) as listener:
            client = socket.create_connection(address)
            listener.accept()[0].close()  # the side that closes first enters TIME_WAIT
            client.close()
    reserve_port(*address).close()


@pytest.mark.parametrize("take", [listen, reserve_port])
def test_a_foreign_host_is_an_error_with_its_name(take: Callable[[str, int], socket.socket]) -> None:
    """And with the system's reason."""
    with pytest.raises(AddressUnavailable, match=r"gRPC cannot listen on 192\.0\.2\.1:0: Cannot assign"):
        take("192.0.2.1", 0)
    with pytest.raises(AddressUnavailable, match=r"gRPC cannot listen on no\.such\.host\.invalid:0: "):
        take("no.such.host.invalid", 0)
