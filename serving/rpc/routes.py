"""Every RPC in one table: full name -> plain async function from request to answer. No transport's types.

A transport serves what `around.wrap` makes of these rows, and knows no message at all.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from serving.rpc.status import Status


@dataclass(slots=True)
class Call:
    """What a function may know of the call beside its message. Cancellation reaches it as CancelledError."""

    metadata: Mapping[str, str]
    deadline_s: float = math.inf  # on the clock of time.monotonic()
    request_id: str = ""


# Makes what a function takes in place of the message, with the row's model_field among its attributes. Raises
# DecodeError, but never for no bytes at all.
Parse = Callable[[bytes], Any]
Reply = Message | bytes  # the latter where it is serialized already
Answer = Callable[[Any, Call], Awaitable[Reply]]
AnswerStream = Callable[[AsyncIterator[Any], Call], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class Unary:
    """One message in, one message out."""

    method: str  # /package.Service/Method
    request: type[Message]
    answer: Answer
    model_field: str = ""  # where the request names a model: tokens are checked against it
    parse: Parse | None = None
    is_open: bool = False  # answered without a token, for probes
    admit: Callable[[], None] | None = None  # raises where not even the smallest request would be taken


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages in, messages out. One message in is a stream too: on the wire they are the same."""

    method: str
    request: type[Message]
    answer: AnswerStream
    parse: Parse | None = None
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A stream in which every message is a request of its own: answered in order, several at a time.

    A request that fails, or is not even a message, is answered by `refuse`, and the stream goes on.
    """

    method: str
    request: type[Message]
    answer: Answer
    refuse: Callable[[Any, Status], Message]  # of the request, an empty one where it could not be parsed
    model_field: str
    parse: Parse | None = None
    is_open: bool = False


Rpc = Unary | Stream | Pipeline


def services(table: Sequence[Rpc]) -> list[str]:
    """Full names of the services in a table, sorted."""
    return sorted({rpc.method.split("/")[1] for rpc in table})
