"""What a server refuses by the head of a request alone: no byte of the body is read or parsed for it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.server import Server
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.transports.raw_connection import RawConnection

CLASSIFY = "/lenserve.v1.Classifier/Classify"
STREAM = "/lenserve.v1.Classifier/ClassifyStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
ELEMENTS = 350_000

CONTENT_TYPES = [
    "application/json",
    "application/proto",
    "application/grpc-web",
    "application/grpc-web+proto",
]


@pytest.fixture
async def server(publish: Publish, serve: Serve, tmp_path: Path) -> AsyncIterator[Server]:
    """A server with one model and one token."""
    publish()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[tokens]\nsecret = ["*"]\n')
    async with serve(token_file=tokens) as running:
        yield running


class Http1Client:
    """One request over HTTP/1.1, part by part."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Http1Client":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        """Send a part."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, path: str, content_type: str, *fields: str, length: int) -> None:
        """Send the head of a request."""
        lines = [f"POST {path} HTTP/1.1", "host: tests", f"content-type: {content_type}", *fields]
        await self.send("\r\n".join([*lines, f"content-length: {length}", "", ""]).encode())

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the body of the answer."""
        async with asyncio.timeout(10):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("path", [CLASSIFY, INFER])
async def test_without_a_token_http_1_is_refused_before_a_body_arrives(
    server: Server, path: str, content_type: str
) -> None:
    """A body of 63 MiB is announced, and never sent."""
    client = await Http1Client.open(server.grpc.port)
    await client.head(path, content_type, length=63 * 2**20)
    status, headers, body = await client.answer()
    if content_type.startswith("application/grpc-web"):
        assert headers["grpc-status"] == "16"
    else:
        assert (status, json.loads(body)["code"]) == (401, "unauthenticated")
    client.close()


@pytest.mark.parametrize("content_type", ["application/grpc", *CONTENT_TYPES])
@pytest.mark.parametrize("path", [CLASSIFY, INFER])
async def test_without_a_token_http_2_is_refused_before_a_body_arrives(
    server: Server, path: str, content_type: str
) -> None:
    """Only the header is sent."""
    async with RawConnection(server.grpc.port) as connection:
        stream = await connection.open("", (":path", path), ("content-type", content_type))
        reply = await connection.reply(stream)
    assert reply.code == "UNAUTHENTICATED" or json.loads(reply.body)["code"] == "unauthenticated"


async def test_without_a_token_nothing_is_parsed(server: Server) -> None:
    """The elements of a request are not even counted: it gets 401, not the error of their number."""
    client = await Http1Client.open(server.grpc.port)
    body = b'{"images":[' + b",".join([b"{}"] * ELEMENTS) + b"]}"
    await client.head(CLASSIFY, "application/json", length=len(body))
    await client.send(body)
    status, _, _ = await client.answer()
    assert status == 401
    client.close()
    empty_images = b"\x22\x00" * ELEMENTS
    async with RawConnection(server.grpc.port) as connection:
        reply = await connection.call("", len(empty_images).to_bytes(5, "big"), (":path", CLASSIFY))
        assert reply.code == "UNAUTHENTICATED"


async def test_a_refused_client_that_keeps_sending_reads_its_answer(server: Server) -> None:
    """The rest of its body is discarded, and the connection serves the next request."""
    client = await Http1Client.open(server.grpc.port)
    size = 20 * 2**20
    await client.head(CLASSIFY, "application/json", length=size)
    await client.send(bytes(size))
    assert (await client.answer())[0] == 401
    body = json.dumps({"model": "colours"}).encode()
    await client.head(CLASSIFY, "application/json", "authorization: Bearer secret", length=len(body))
    await client.send(body)
    assert (await client.answer())[0] == 400
    client.close()


@pytest.mark.parametrize("content_type", ["application/json", "application/proto", "application/grpc-web"])
async def test_a_deadline_counts_while_the_body_is_awaited(server: Server, content_type: str) -> None:
    """Connect's and gRPC-Web's, over HTTP/1.1."""
    client = await Http1Client.open(server.grpc.port)
    fields = ("authorization: Bearer secret", "connect-timeout-ms: 50", "grpc-timeout: 50m")
    await client.head(CLASSIFY, content_type, *fields, length=100)
    status, headers, _ = await client.answer()
    assert (status, headers.get("grpc-status")) in ((504, None), (200, "4"))
    client.close()


@pytest.mark.parametrize("fields", [(), (("authorization", "Bearer wrong"),)])
async def test_a_stream_without_a_token_is_refused_by_its_header(
    server: Server, fields: tuple[tuple[str, str], ...]
) -> None:
    """As a unary call is."""
    async with RawConnection(server.grpc.port) as connection:
        reply = await connection.reply(await connection.open("", (":path", STREAM), *fields))
    assert reply.code == "UNAUTHENTICATED"
