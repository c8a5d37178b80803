"""Addresses as text, and servers that listen on IPv6."""

import asyncio
import socket
from contextlib import closing
from urllib.request import urlopen

import pytest

from serving.addresses import join_address, without_brackets
from serving.client.client import AsyncClient
from serving.errors import AddressUnavailable
from serving.transports.connection_passing import ConnectionDistributor
from serving.transports.ports import listen, reserve_port
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.log_events import LogEvents

RED = b"P6 1 1 255 \xff\0\0"


@pytest.fixture
def ipv6() -> None:
    """Skip where the machine has no IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1", "127.0.0.1:9"),
        ("localhost", "localhost:9"),
        ("::1", "[::1]:9"),
        ("[::1]", "[::1]:9"),
        ("::", "[::]:9"),
        ("fe80::1%eth0", "[fe80::1%eth0]:9"),
        ("::ffff:10.0.0.7", "10.0.0.7:9"),
    ],
)
def test_ipv6_addresses_have_brackets(host: str, text: str) -> None:
    """And an IPv4 client looks the same on a socket for both."""
    assert join_address(host, 9) == text
    assert ("[" in without_brackets(host), "]" in without_brackets(host)) == (False, False)


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("transport", ["h2", "grpc"])
@pytest.mark.parametrize(
    ("host", "reached"), [("::", ("127.0.0.1", "[::1]")), ("::1", ("[::1]",)), ("[::1]", ("[::1]",))]
)
async def test_a_server_listens_on_ipv6(
    *,
    publish: Publish,
    serve: Serve,
    log_events: LogEvents,
    transport: str,
    host: str,
    reached: tuple[str, ...],
) -> None:
    """Both ports; :: is for IPv4 too. The logged address is one that clients take."""
    publish()
    async with serve(host=host, transport=transport, access_log_sample=1) as server:
        assert server.http is not None
        for each in reached:
            async with AsyncClient(f"{each}:{server.grpc.port}") as client:
                assert (await client.classify(RED, model="colours")).top.label == "red"
            assert await _status(f"http://{each}:{server.http.port}/readyz") == 200
        (listening,) = [each for each in log_events.records if each.getMessage() == "listening"]
        assert vars(listening)["grpc"] == f"[{without_brackets(host)}]:{server.grpc.port}"


@pytest.mark.usefixtures("ipv6")
async def test_metrics_and_probes_can_have_another_address(publish: Publish, serve: Serve) -> None:
    """Such as one that only this machine reaches."""
    publish()
    async with serve(host="::1", http_host="127.0.0.1") as server:
        assert server.http is not None
        assert await _status(f"http://127.0.0.1:{server.http.port}/livez") == 200
        with closing(socket.socket(socket.AF_INET6)) as refused:
            assert refused.connect_ex(("::1", server.http.port)) != 0
        async with AsyncClient(f"[::1]:{server.grpc.port}") as client:
            assert (await client.classify(RED, model="colours")).top.label == "red"


@pytest.mark.usefixtures("ipv6")
async def test_workers_share_a_port_on_ipv6() -> None:
    """On both transports: the supervisor listens, or reserves the port."""
    async with ConnectionDistributor("::1", 0) as distributor:
        assert distributor.port
    with reserve_port("::", 0) as reserved:
        port = reserved.getsockname()[1]
        assert reserved.family == socket.AF_INET6
        with pytest.raises(
            AddressUnavailable, match=rf"gRPC cannot listen on \[::\]:{port}: Address already in"
        ):
            reserve_port("[::]", port)


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "no.such.host.invalid"])
def test_a_host_that_is_none_is_reported(host: str) -> None:
    """In one line, with the options to set."""
    with pytest.raises(
        AddressUnavailable, match=rf"HTTP cannot listen on {host}:1: .*; set another --a or --b"
    ):
        listen(host, 1, what="HTTP", option="--a", host_option="--b")


async def _status(url: str) -> int:
    def ask() -> int:
        with urlopen(url, timeout=10) as answer:  # noqa: S310 - http
            return int(answer.status)

    return await asyncio.to_thread(ask)
