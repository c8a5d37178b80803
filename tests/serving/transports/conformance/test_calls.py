"""Addresses of a transport, and the context of a call."""

import time

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from serving.errors import AddressUnavailable
from tests.serving.transports.conformance.methods import Methods
from tests.serving.transports.conformance.served import Serve, Served


async def test_port_0_becomes_a_free_port(serve: Serve) -> None:
    """A started server knows its port."""
    async with serve() as first, serve() as second:
        assert 0 < first.server.port != second.server.port > 0


async def test_a_port_in_use_is_an_error(served: Served) -> None:
    """Two servers never share a port by accident."""
    port = served.server.port
    second = type(served.server)([], host="127.0.0.1", port=port, max_message_bytes=2**20)
    with pytest.raises(AddressUnavailable, match=f"gRPC cannot listen on 127.0.0.1:{port}"):
        await second.__aenter__()


@pytest.mark.parametrize("host", ["256.1.1.1", "nobody.invalid"])
async def test_an_invalid_host_is_an_error(served: Served, host: str) -> None:
    """The message names it."""
    server = type(served.server)([], host=host, port=0, max_message_bytes=2**20)
    with pytest.raises(AddressUnavailable, match=f"gRPC cannot listen on {host}:0"):
        await server.__aenter__()


async def test_the_deadline_of_a_call_reaches_the_function(served: Served, methods: Methods) -> None:
    """On the clock of time.monotonic(); infinite without one."""
    await methods.unary("Say")(BytesValue(), timeout=30)
    await methods.unary("Say")(BytesValue())
    limited, unlimited = served.echo.deadlines_s
    assert 25 < limited - time.monotonic() < 31
    assert unlimited == float("inf")
