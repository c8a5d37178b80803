"""Both transports with one table of test methods, wrapped by the real `Middleware`, and clients for them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from serving.metrics.recorder import Metrics
from serving.rpc.middleware import Middleware
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.tls import TlsFiles
from tests.serving.transports.conformance.echo import Echo
from tests.serving.transports.conformance.methods import Channels, Methods
from tests.serving.transports.conformance.served import (
    DIFFERENCES,
    MAX_MESSAGE_BYTES,
    SERVERS,
    Differences,
    Serve,
    Served,
)


@pytest.fixture(params=sorted(SERVERS))
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport. Every test of this folder runs with each."""
    name: str = request.param
    return name


@pytest.fixture
def differences(transport: str) -> Differences:
    """Differences of this transport."""
    return DIFFERENCES[transport]


@pytest.fixture
def serve(transport: str) -> Serve:
    """Run servers over this transport."""

    @asynccontextmanager
    async def running(
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: TlsFiles | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> AsyncIterator[Served]:
        metrics, echo = Metrics(), Echo()
        middleware = Middleware(metrics)
        rows = [middleware.wrap(row) for row in echo.rows()]
        limit = max_message_bytes
        async with SERVERS[transport](
            rows, host="127.0.0.1", port=0, max_message_bytes=limit, tls=tls, limits=limits
        ) as server:
            try:
                yield Served(server, middleware, metrics, echo)
            finally:
                echo.may_end.set()

    return running


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """A running server."""
    async with serve() as each:
        yield each


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    """Open channels, which are closed after the test."""
    opened: list[grpc.aio.Channel] = []

    def connect(served: Served | str, *options: tuple[str, Any], **keywords: Any) -> Methods:
        address = served if isinstance(served, str) else served.address
        # By default channels to the same target share a connection.
        plain = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
        channel = grpc.aio.insecure_channel(address, options=[*plain, *options], **keywords)
        opened.append(channel)
        return Methods(channel)

    yield connect
    for channel in opened:
        await channel.close()


@pytest.fixture
async def methods(served: Served, channels: Channels) -> Methods:
    """The methods of the running server, without retries."""
    return channels(served, ("grpc.enable_retries", 0))
