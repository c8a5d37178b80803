"""Limits in time that both transports have: age, idleness, silence, and the TLS handshake."""

import asyncio
from pathlib import Path

import pytest

from serving.transports.http.limits import Limits
from serving.transports.tls import TlsFiles
from tests.serving.transports.conformance.served import Serve
from tests.serving.transports.raw_connection import RawConnection

SHORT_S = 0.2
SMALL = b"\0\0\0\0\3\x0a\x01x"


async def test_an_old_connection_ends_gracefully(serve: Serve) -> None:
    """GOAWAY without an error; the running call is answered, then the connection closes."""
    limits = Limits(max_connection_age_s=SHORT_S, check_interval_s=SHORT_S / 10)
    async with serve(limits=limits) as served, RawConnection(served.server.port) as client:
        stream = await client.open("Each")
        await client.read_until(lambda: bool(client.goaways))
        await client.send(stream, SMALL, end=True)
        reply = await client.reply(stream)
        assert (reply.code, reply.body, set(client.goaways)) == ("OK", SMALL, {0})
        await client.read_until(lambda: client.is_closed)


async def test_a_call_that_outlives_the_grace_is_cut(serve: Serve) -> None:
    """The connection closes although its call runs."""
    limits = Limits(
        max_connection_age_s=SHORT_S, max_connection_age_grace_s=SHORT_S, check_interval_s=SHORT_S / 10
    )
    async with serve(limits=limits) as served, RawConnection(served.server.port) as client:
        await client.open("Each")
        with pytest.raises(AssertionError, match="closed"):
            await client.read_until(lambda: False)
        assert client.goaways


async def test_an_idle_connection_is_closed(serve: Serve) -> None:
    """After its last call."""
    limits = Limits(idle_timeout_s=SHORT_S, check_interval_s=SHORT_S / 10)
    async with serve(limits=limits) as served, RawConnection(served.server.port) as client:
        assert (await client.call("Say", SMALL)).code == "OK"
        await client.read_until(lambda: client.is_closed)


async def test_a_handshake_that_stalls_is_ended(serve: Serve, certificates: Path) -> None:
    """A client that says nothing at all."""
    tls = TlsFiles(certificates / "server.pem", certificates / "server.key")
    async with serve(tls=tls, limits=Limits(tls_handshake_s=SHORT_S)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
