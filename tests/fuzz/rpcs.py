"""Requests of every RPC in protobuf, through the middleware, the services and a stub of an engine."""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import NamedTuple

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from serving.rpc.handlers import Failure, UnaryHandler
from serving.rpc.routes import Call
from serving.rpc.status import Code
from tests.fuzz.protobuf import mutate_message, random_message
from tests.fuzz.requests import valid_requests
from tests.fuzz.stub_server import StubServer, open_stub_server

_WATCH = "/grpc.health.v1.Health/Watch"  # lasts until the server stops
_AUTHORIZATIONS = (
    "",
    "Bearer some",
    "Bearer every",
    "bearer  every ",
    "Bearer no",
    "Basic x",
    "Bearer",
    "\xff \ufffd",
    "Bearer \x00",
)
_IDS = ("", "", "", "abc", "a b", "x" * 129, "a\nb", "\u2028")


class RpcCall(NamedTuple):
    """A call of one RPC."""

    method: int  # place in the table
    messages: list[bytes]
    metadata: Mapping[str, str]
    has_tokens: bool  # whether the server wants one
    timeout_s: float


class Rpcs:
    """Calls of a whole server, one after the other."""

    def __init__(self, server: StubServer) -> None:
        self._server = server
        self._requests = valid_requests(server.region_key)
        # Those with the most to go wrong come most often.
        self._often = [
            place
            for place, rpc in enumerate(server.table)
            if rpc.method.endswith(("Infer", "Classify", "Stream"))
        ]
        self._answers = [_answer_type(rpc.method) for rpc in server.table]

    def make(self, random: Random) -> RpcCall:
        """A call, usually with a changed request."""
        table = self._server.table
        place = random.choice(self._often) if random.random() < 0.6 else random.randrange(len(table))
        is_stream = not isinstance(self._server.handlers[place], UnaryHandler)
        descriptor = table[place].request.DESCRIPTOR
        known = self._requests.get(descriptor.full_name, [b""])
        messages = []
        for _ in range(random.choice((0, 1, 1, 2, 5)) if is_stream else 1):
            choice = random.random()
            if choice < 0.1:
                messages.append(random.choice(known))
            elif choice < 0.9:
                messages.append(mutate_message(random, random.choice(known)))
            else:
                messages.append(random_message(random, descriptor))
        metadata = {"authorization": random.choice(_AUTHORIZATIONS), "x-request-id": random.choice(_IDS)}
        timeout_s = random.choice((math.inf, math.inf, math.inf, 5, 0, -1, 1e-5, 1e9))
        return RpcCall(place, messages, metadata, random.random() < 0.1, timeout_s)

    async def check(self, made: RpcCall) -> str:
        """An answer that parses, or an error of the client; never INTERNAL."""
        server = self._server
        handler = (server.handlers_with_tokens if made.has_tokens else server.handlers)[made.method]
        call = Call(made.metadata, time.monotonic() + made.timeout_s)
        parse = self._answers[made.method].FromString
        try:
            if isinstance(handler, UnaryHandler):
                parse(await handler.answer(lambda: _read(made.messages[0]), call))
            else:
                count = len(made.messages) if handler.method == _WATCH else -1
                async with aclosing(handler.answer(_each(made.messages), call)) as groups:
                    if count:
                        async for group in groups:
                            for answer in group:
                                _check_answer(parse(answer))
                            if count > 0:
                                break
        except Failure as failure:
            if failure.status.code in (Code.INTERNAL, Code.OK):
                raise
            return failure.status.code.name
        except TimeoutError:
            assert not isinstance(handler, UnaryHandler)
            return "DEADLINE_EXCEEDED"
        return "OK"


def _check_answer(answer: Message) -> None:
    error = getattr(answer, "error", None)
    assert getattr(error, "code", 0) != Code.INTERNAL, answer
    assert not getattr(answer, "error_message", "").startswith("the server failed"), answer


async def _read(message: bytes) -> bytes:
    return message


async def _each(messages: list[bytes]) -> AsyncGenerator[bytes, None]:
    for message in messages:
        yield message


def _answer_type(method: str) -> type[Message]:
    service, _, name = method[1:].partition("/")
    descriptor = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    return message_factory.GetMessageClass(descriptor.output_type)


@asynccontextmanager
async def open_rpcs() -> AsyncIterator[Rpcs]:
    """Open the target."""
    async with open_stub_server() as server:
        yield Rpcs(server)
