"""Behaviour of only this transport. Tests of both transports are in conformance/."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from serving.metrics.recorder import Metrics
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Stream, Unary
from serving.transports.rpc_over_http.server import H2Server

_SOCKETS = Path("/proc/net/tcp")
_ESTABLISHED, _KEEPALIVE_TIMER = "01", "02"


async def _echo(request: BytesValue, _call: Call) -> BytesValue:
    return request


async def _each(requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[BytesValue]:
    async for request in requests:
        yield request


def _server(host: str = "127.0.0.1") -> H2Server:
    middleware = Middleware(Metrics())
    rows = (Unary("/tests.Echo/Say", BytesValue, _echo), Stream("/tests.Echo/Each", BytesValue, _each))
    return H2Server([middleware.wrap(row) for row in rows], host=host, port=0, max_message_bytes=2**20)


async def test_nothing_is_written_to_stdout_or_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """Also when a client cancels its call."""
    async with _server() as server, _channel(f"127.0.0.1:{server.port}") as channel:
        say = channel.unary_unary("/tests.Echo/Say", BytesValue.SerializeToString, BytesValue.FromString)
        await say(BytesValue())
        call = channel.stream_stream(
            "/tests.Echo/Each", BytesValue.SerializeToString, BytesValue.FromString
        )()
        await call.write(BytesValue(value=b"1"))
        await call.read()
        call.cancel()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine speaks no IPv6")
async def test_it_listens_on_ipv6_too() -> None:
    """An address with colons."""
    async with _server("::1") as server, _channel(f"[::1]:{server.port}") as channel:
        say = channel.unary_unary("/tests.Echo/Say", BytesValue.SerializeToString, BytesValue.FromString)
        assert await say(BytesValue(value=b"6")) == BytesValue(value=b"6")


@pytest.mark.skipif(not _SOCKETS.exists(), reason=f"this system has no {_SOCKETS}")
async def test_dead_clients_are_detected() -> None:
    """Keepalive is on: a connection whose client has lost power does not stay forever."""
    async with _server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))  # and empty SETTINGS
        await reader.readexactly(9)
        async with asyncio.timeout(10):
            while await asyncio.to_thread(_timers, server.port) != [_KEEPALIVE_TIMER]:
                pass  # what the server has sent is not acknowledged yet
        writer.close()
        await writer.wait_closed()


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address)


def _timers(port: int) -> list[str]:
    """The timers of connections to a port: proc_net_tcp in the kernel's documentation."""
    rows = [line.split() for line in _SOCKETS.read_text().splitlines()[1:]]
    ours = [row for row in rows if row[1].endswith(f":{port:04X}") and row[3] == _ESTABLISHED]
    return [row[5].partition(":")[0] for row in ours]
