"""What an RPC is: its full name, and an async function from request to answer. Knows no transport.

Services return tables of them. `Middleware.wrap` makes a handler of each, which transports serve.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from serving.rpc.status import Status


@dataclass(slots=True)
class Call:
    """What an RPC's function knows of a call beside its message. Cancellation comes as CancelledError."""

    metadata: Mapping[str, str]
    deadline_s: float = math.inf  # on the clock of time.monotonic()
    request_id: str = ""


# Returns what the function gets in place of the message; it has the attribute that `model_field` names.
# Raises DecodeError, but never for an empty message.
Parse = Callable[[bytes], Any]
Reply = Message | bytes  # bytes: serialized already
Answer = Callable[[Any, Call], Awaitable[Reply]]
AnswerStream = Callable[[AsyncIterator[Any], Call], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class Unary:
    """One message in, one message out."""

    method: str  # /package.Service/Method
    request: type[Message]
    answer: Answer
    model_field: str = ""  # the field of the request with the model's name, which tokens are checked for
    parse: Parse | None = None
    is_probe: bool = False  # answered without a token, and while the server is stopping
    admit: Callable[[], None] | None = None  # raises if no request would be admitted now


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages in, messages out. RPCs with one message in are streams too: on the wire they are the same."""

    method: str
    request: type[Message]
    answer: AnswerStream
    parse: Parse | None = None
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A stream whose messages are independent requests: answered in order, several at a time.

    A request that fails, or cannot be parsed, is answered by `refuse`, and the stream goes on.
    """

    method: str
    request: type[Message]
    answer: Answer
    refuse: Callable[[Any, Status], Message]  # takes an empty request if it could not be parsed
    model_field: str
    parse: Parse | None = None
    is_probe: bool = False


Rpc = Unary | Stream | Pipeline


def services(table: Sequence[Rpc]) -> list[str]:
    """Full names of the services in a table, sorted."""
    return sorted({rpc.method.split("/")[1] for rpc in table})
