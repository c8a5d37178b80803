"""Connect's unary calls in JSON and protobuf, and gRPC-Web, of every RPC."""

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

from google.protobuf import json_format

from serving.rpc.routes import Unary
from serving.transports.http.asgi import EXTENSIONS, Event
from serving.transports.rpc_over_http.connect_app import ConnectApp
from tests.fuzz.grpc_calls import answer_events, status_of_trailers
from tests.fuzz.mutations import cut, mutate, mutate_json
from tests.fuzz.protobuf import mutate_message
from tests.fuzz.requests import valid_requests
from tests.fuzz.stub_server import StubServer, open_stub_server

_MAX_MESSAGE_BYTES = 2**16
_TIMEOUTS = (b"1000", b"0", b"9999999999", b"99999999999", b"", b"-1", b"1.5", b"abc", b"\xd9\xa1")
_EXTRA: list[tuple[bytes, bytes]] = [
    (b"connect-protocol-version", b"1"), (b"connect-protocol-version", b"2"), (b"authorization",
    b"Bearer every"),
    (b"content-encoding", b"gzip"), (b"content-encoding", b"br"), (b"content-encoding", b"identity"),
    (b"x-request-id", b"\xff"),
]  # fmt: skip
_TYPES = (
    b"application/json",
    b"application/json",
    b"application/json",
    b"application/json; charset=utf-8",
    b"application/proto",
)
_ODD_TYPES = (
    b"application/grpc-web",
    b"application/grpc-web+proto",
    b"application/grpc-web-text",
    b"text/plain",
    b"",
    b"application/JSON",
)
_UNEXPECTED = (500, 599)


class WebCall(NamedTuple):
    """A request for the application that serves everything but gRPC."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: list[bytes]


class ConnectCalls:
    """Calls of one server."""

    def __init__(self, server: StubServer) -> None:
        self._app = ConnectApp(server.handlers, max_message_bytes=_MAX_MESSAGE_BYTES)
        requests = valid_requests(server.region_key)
        self._methods: list[tuple[str, list[bytes], list[Any], list[str]]] = []
        for rpc in server.table:
            if isinstance(rpc, Unary):
                known = requests.get(rpc.request.DESCRIPTOR.full_name, [b""])
                values = [json_format.MessageToDict(rpc.request.FromString(each)) for each in known]
                names = [field.json_name for field in rpc.request.DESCRIPTOR.fields]
                copies = 8 if rpc.method.endswith(("Infer", "Classify")) else 1
                self._methods += [(rpc.method, known, values, names)] * copies

    def make(self, random: Random) -> WebCall:
        """A request whose JSON or protobuf is usually changed."""
        path, known, values, names = random.choice(self._methods)
        content_type = random.choice(_TYPES if random.random() < 0.9 else _ODD_TYPES)
        if b"json" in content_type.lower():
            body = mutate_json(random, random.choice(values), names)
        else:
            body = mutate_message(random, random.choice(known))
            if b"web" in content_type:
                body = bytes(1) + len(body).to_bytes(4, "big") + body
        headers = [(b"content-type", content_type), *random.sample(_EXTRA, random.choice((0, 0, 0, 1, 2)))]
        if random.random() < 0.1:
            headers.append((b"connect-timeout-ms", random.choice(_TIMEOUTS)))
        if (b"content-encoding", b"gzip") in headers and random.random() < 0.8:
            body = gzip.compress(body if random.random() < 0.9 else bytes(2**20), 1, mtime=0)
            body = body if random.random() < 0.8 else mutate(random, body)
        method = "POST" if random.random() < 0.98 else random.choice(("GET", "HEAD", "PUT", ""))
        path = path if random.random() < 0.98 else random.choice(("/", "", path + "/", path[1:], "/\xff"))
        return WebCall(method, path, headers, cut(random, body, 3))

    async def check(self, made: WebCall) -> str:
        """A status of Connect's table that tells of no failure of the server; errors are JSON."""
        scope: Event = {
            "type": "http", "method": made.method, "path": made.path, "headers": made.headers,
            "extensions": EXTENSIONS,
        }  # fmt: skip
        events = await answer_events(self._app, scope, made.body)
        start = events[0]
        assert start["type"] == "http.response.start", start
        headers = dict(start["headers"])
        status: int = start["status"]
        assert status not in _UNEXPECTED, events
        body = b"".join(event["body"] for event in events[1:])
        content_type: bytes = headers[b"content-type"]
        if b"grpc-web" in content_type:
            trailers = headers if b"grpc-status" in headers else _web_trailers(body)
            return f"gRPC-Web {status_of_trailers(trailers)}"
        if content_type == b"application/json":
            value = json.loads(body) if body else {}
            if status != 200:
                assert value["code"] not in ("internal", "unknown") or "message" in value, value
                return str(value["code"])
        return f"HTTP {status}"


def _web_trailers(body: bytes) -> dict[bytes, bytes]:
    at = 0
    while body[at] & 0x80 == 0:
        at += 5 + int.from_bytes(body[at + 1 : at + 5], "big")
    lines = body[at + 5 :].split(b"\r\n")
    return {name: value for name, _, value in (line.partition(b": ") for line in lines if line)}


@asynccontextmanager
async def open_connect_calls() -> AsyncIterator[ConnectCalls]:
    """Open the target."""
    async with open_stub_server() as server:
        yield ConnectCalls(server)
