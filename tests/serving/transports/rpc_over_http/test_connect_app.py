"""Connect's unary calls and gRPC-Web over HTTP/1.1, as curl and browsers make them, against a real server."""

import asyncio
import base64
import gzip
import http.client
import json
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.status import Code, Status
from serving.transports.rpc_over_http import connect_app
from tests.colours import Publish
from tests.servers import Serve

CLASSIFY = "/lenserve.v1.Classifier/Classify"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
JSON = {"content-type": "application/json"}
RED = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=bytes([255, 0, 0] * 64)))
REQUEST = pb.ClassifyRequest(model="colours", images=[RED], top_k=1)

Response = tuple[http.client.HTTPResponse, bytes]
Ask = Callable[..., Awaitable[Response]]


@pytest.fixture
async def port(publish: Publish, serve: Serve) -> AsyncIterator[int]:
    """The port of a server with one model and messages of at most 10,000 bytes."""
    publish()
    async with serve(max_message_bytes=10_000) as server:
        yield server.grpc.port


def _post(port: int, path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.fixture
def ask(port: int) -> Ask:
    """A function that sends a request over HTTP/1.1, and returns the response with its body."""

    async def asked(path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> Response:
        return await asyncio.to_thread(_post, port, path, body, headers, method)

    return asked


def _json(message: Message) -> bytes:
    return json.dumps(MessageToDict(message)).encode()


class TestConnect:
    """Unary calls, in JSON and in protobuf's binary format."""

    async def test_json_in_json_out(self, ask: Ask) -> None:
        """Pixels in base64; labels by name."""
        response, body = await ask(CLASSIFY, _json(REQUEST), {**JSON, "x-request-id": "order-7"})
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        assert response.headers["x-request-id"] == "order-7"
        (prediction,) = json.loads(body)["predictions"]
        assert prediction["ranking"]["labels"][0]["label"] == "red"

    async def test_protobuf_in_protobuf_out(self, ask: Ask) -> None:
        """The same answer as in JSON."""
        response, body = await ask(
            CLASSIFY, REQUEST.SerializeToString(), {"content-type": "application/proto"}
        )
        assert response.status == 200
        answer = pb.ClassifyResponse.FromString(body)
        _, text = await ask(CLASSIFY, _json(REQUEST), JSON)
        assert json.loads(text) == MessageToDict(answer)

    async def test_a_compressed_request_is_read(self, ask: Ask) -> None:
        """Content-Encoding: gzip. A decompression bomb is rejected."""
        headers = {**JSON, "content-encoding": "gzip"}
        response, _ = await ask(CLASSIFY, gzip.compress(_json(REQUEST)), headers)
        assert response.status == 200
        response, body = await ask(CLASSIFY, gzip.compress(bytes(1_000_000)), headers)
        assert (response.status, json.loads(body)["code"]) == (429, "resource_exhausted")

    @pytest.mark.parametrize(
        ("encoding", "body"), [("gzip", b"{}"), ("gzip", gzip.compress(b"{}", mtime=0)[:-9]), ("br", b"{}")]
    )
    async def test_a_request_that_cannot_be_decompressed_is_the_clients_error(
        self, ask: Ask, encoding: str, body: bytes
    ) -> None:
        """Not 500, which tells of a failure of the server; gRPC's specification calls it INTERNAL."""
        response, text = await ask(CLASSIFY, body, {**JSON, "content-encoding": encoding})
        assert (response.status, json.loads(text)["code"]) == (400, "invalid_argument")

    async def test_an_error_has_code_message_and_details(self, ask: Ask) -> None:
        """As Connect specifies."""
        request = pb.ClassifyRequest(model="shapes", images=[RED])
        response, body = await ask(CLASSIFY, _json(request), {**JSON, "x-request-id": "order-7"})
        error = json.loads(body)
        assert (response.status, error["code"]) == (404, "not_found")
        assert error["message"].startswith("there is no model 'shapes'")
        (detail,) = error["details"]
        assert detail["type"] == "google.rpc.ErrorInfo"
        value = detail["value"]
        info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
        assert (info.reason, info.metadata["request_id"]) == ("UNKNOWN_MODEL", "order-7")

    def test_every_code_has_an_http_status(self) -> None:
        """The specification has one for each code."""
        assert set(connect_app._HTTP_STATUS) == set(Code) - {Code.OK}

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"7", b'{"model": 7}', b'{"modle": "x"}', b"\xff", b"[" * 4000]
    )
    async def test_an_invalid_request_is_rejected(self, ask: Ask, body: bytes) -> None:
        """Also one with an unknown field."""
        response, text = await ask(CLASSIFY, body, JSON)
        error = json.loads(text)
        assert (response.status, error["code"]) == (400, "invalid_argument")
        assert "lenserve.v1.ClassifyRequest" in error["message"]

    async def test_half_of_a_surrogate_pair_is_quoted_as_its_escape(self, ask: Ask) -> None:
        """UTF-8 has none, and the message of the error is UTF-8: it had no answer at all."""
        response, text = await ask(CLASSIFY, rb'{"images": "\ud800"}', JSON)
        error = json.loads(text)
        assert (response.status, error["code"]) == (400, "invalid_argument")
        assert "\\ud800" in error["message"]

    @pytest.mark.parametrize("elements", [4096, 350_000])
    async def test_elements_are_counted_before_they_are_parsed(
        self, publish: Publish, serve: Serve, elements: int
    ) -> None:
        """The message has the limit, and what to do."""
        publish()
        body = b'{"images":[' + b",".join([b"{}"] * (elements // 2)) + b"]}"
        async with serve() as server:
            response, text = await asyncio.to_thread(_post, server.grpc.port, CLASSIFY, body, JSON)
        error = json.loads(text)
        assert (response.status, error["code"]) == (400, "invalid_argument")
        assert "has more than 4096 elements, the limit: send tensors as bytes" in error["message"]

    async def test_a_length_over_the_limit_is_rejected_before_the_body_arrives(self, port: int) -> None:
        """JSON has a lower limit than other messages."""
        for content_type, length in (("application/json", 10_001), ("application/proto", 10_001)):
            head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{head}content-length: {length}\r\n\r\n".encode())
            status = await asyncio.wait_for(reader.readline(), 10)
            assert status.startswith(b"HTTP/1.1 429")
            writer.close()

    async def test_a_request_over_the_limit_is_rejected(self, ask: Ask) -> None:
        """As in gRPC; the limit is for the bytes that are sent."""
        response, body = await ask(CLASSIFY, bytes(10_001), JSON)
        assert (response.status, json.loads(body)["code"]) == (429, "resource_exhausted")
        assert "10000" in json.loads(body)["message"]

    @pytest.mark.parametrize(
        ("given", "status", "code"),
        [("0", 504, "deadline_exceeded"), ("soon", 400, "invalid_argument"), ("-1", 400, "invalid_argument")],
    )
    async def test_timeouts(self, ask: Ask, given: str, status: int, code: str) -> None:
        """Milliseconds. An invalid timeout is an error, not "no timeout"."""
        response, body = await ask(CLASSIFY, _json(REQUEST), {**JSON, "connect-timeout-ms": given})
        assert (response.status, json.loads(body)["code"]) == (status, code)
        response, _ = await ask(CLASSIFY, _json(REQUEST), {**JSON, "connect-timeout-ms": "10000"})
        assert response.status == 200

    async def test_unknown_methods_verbs_and_content_types(self, ask: Ask) -> None:
        """404, 405 and 415. Streams need gRPC or gRPC-Web."""
        for path in ("/lenserve.v1.Classifier/Nothing", "/", WATCH):
            response, body = await ask(path, b"{}", JSON)
            assert (response.status, json.loads(body)["code"]) == (404, "unimplemented")
        response, _ = await ask(CLASSIFY, b"", JSON, method="GET")
        assert (response.status, response.headers["allow"]) == (405, "POST")
        for content_type in ("text/html", "application/connect+json", "application/grpc-web-text", ""):
            response, body = await ask(CLASSIFY, b"{}", {"content-type": content_type})
            assert response.status == 415
            assert b"application/json" in body
            assert f"'{content_type}'".encode() in body

    async def test_curl_over_http_2(self, port: int) -> None:
        """The command in the documentation."""
        curl = shutil.which("curl")
        if curl is None:
            pytest.skip("no curl on this machine")
        url = f"http://127.0.0.1:{port}{CHECK}"
        options = ("--silent", "--http2-prior-knowledge", "--header", "content-type: application/json")
        command = [curl, *options, "--data", "{}", url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {"status": "SERVING"}


def _frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def _frames(body: bytes) -> list[tuple[int, bytes]]:
    frames = []
    while body:
        flag, length = struct.unpack_from(">BI", body)
        frames.append((flag, body[5 : 5 + length]))
        body = body[5 + length :]
    return frames


class TestGrpcWeb:
    """Trailers are the last frame of the body."""

    @pytest.mark.parametrize("content_type", ["application/grpc-web", "application/grpc-web+proto"])
    async def test_a_unary_call(self, ask: Ask, content_type: str) -> None:
        """One message, then trailers."""
        response, body = await ask(
            CLASSIFY, _frame(REQUEST.SerializeToString()), {"content-type": content_type}
        )
        (message_flag, message), (trailers_flag, trailers) = _frames(body)
        assert (response.status, response.headers["content-type"]) == (200, content_type)
        assert (message_flag, trailers_flag) == (0, 0x80)
        answer = pb.ClassifyResponse.FromString(message)
        assert answer.predictions[0].ranking.labels[0].label == "red"
        assert b"grpc-status: 0\r\n" in trailers

    async def test_a_failure_is_in_the_headers(self, ask: Ask) -> None:
        """Without a message there is no body."""
        request = pb.ClassifyRequest(model="shapes", images=[RED])
        response, body = await ask(
            CLASSIFY, _frame(request.SerializeToString()), {"content-type": "application/grpc-web"}
        )
        assert (response.status, response.headers["grpc-status"], body) == (200, "5", b"")

    async def test_a_stream_of_answers(self, port: int) -> None:
        """Each message comes at once: Watch sends the first state and stays open."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = _frame(health_pb2.HealthCheckRequest().SerializeToString())
        head = f"POST {WATCH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        expected = _frame(health_pb2.HealthCheckResponse(status="SERVING").SerializeToString())
        async with asyncio.timeout(10):
            assert (await reader.readuntil(expected)).endswith(expected)
        writer.close()
        await writer.wait_closed()


def test_a_refusal_because_of_overload_has_its_delay_in_the_details() -> None:
    """As gRPC clients get it: a RetryInfo after the ErrorInfo."""
    status = Status(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "full", 1.5)
    _, detail = json.loads(connect_app._error(status, "id-1"))["details"]
    retry = error_details_pb2.RetryInfo.FromString(base64.b64decode(detail["value"] + "=="))
    assert (detail["type"], retry.retry_delay.ToMilliseconds()) == ("google.rpc.RetryInfo", 1500)
