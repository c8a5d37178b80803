"""Defines RPCs: a full name, and an async function from request to answer. Independent of transports.

Services return tables of RPCs. `Middleware.wrap` turns each into a handler, which transports serve.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from google.protobuf.message import Message

from serving.rpc.bearer_tokens import Grant
from serving.rpc.status import Status


@dataclass(slots=True)
class Call:
    """The context of a call, passed to an RPC's function. Cancellation raises CancelledError."""

    metadata: Mapping[str, str]
    deadline_s: float = math.inf  # on the clock of time.monotonic()
    request_id: str = ""
    grant: Grant | None = None  # what the call's token allows; None: tokens are off
    received_s: float = 0.0  # when a unary call's message was complete, on the clock of time.perf_counter()

    # For the access log. Without defaults, they cost nothing until they are set.
    peer: tuple[Any, ...] | str | None = field(init=False, repr=False, compare=False)  # the client's address
    model: str = field(init=False, repr=False, compare=False)  # that the call names

    # Raises an error if a message of the call that begins like this cannot be admitted. Set when a message is
    # read, for transports that receive it in parts. It must not hold the call: that would be a cycle.
    check_beginning: "Callable[[bytes, Call], None]" = field(init=False, repr=False, compare=False)

    def allows(self, model: str) -> bool:
        """Whether the call may see a model."""
        return self.grant is None or self.grant.allows(model)

    @property
    def owner(self) -> str:
        """Owner of what the call registers; without tokens there is only one."""
        return "" if self.grant is None else self.grant.owner


# Returns the request that is passed to the function; it has the attribute `model_field`. Raises DecodeError
# or InvalidRequest, but never for an empty message.
Parse = Callable[[bytes], Any]
Reply = Message | bytes  # bytes: already serialized
Answer = Callable[[Any, Call], Awaitable[Reply]]
AnswerStream = Callable[[AsyncIterator[Any], Call], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class AdmitNamed:
    """Admits a request by what it names, before its contents have arrived."""

    check: Callable[[Any, Call], None]  # raises; gets a request without its contents
    contents_field: int  # the number of the first field that is large; those before it name the model


@dataclass(frozen=True, slots=True)
class Unary:
    """One message in, one message out."""

    grpc_type: ClassVar = "unary"  # for metrics

    method: str  # /package.Service/Method
    request: type[Message]
    answer: Answer
    model_field: str = ""  # the request's field with the model's name, for tokens
    parse: Parse | None = None
    is_probe: bool = False  # answered without a token, even while the server is stopping
    admit: Callable[[], None] | None = None  # raises if there is no room: called before the message is read
    admit_named: AdmitNamed | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages in, messages out. RPCs with one request message are streams too, as on the wire."""

    method: str
    request: type[Message]
    answer: AnswerStream
    parse: Parse | None = None
    is_probe: bool = False
    grpc_type: str = "bidi_stream"  # for metrics; server_stream: it has one request message


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A stream of independent requests: answered in order, several at a time.

    If a request fails or cannot be parsed, `refuse` returns its answer, and the stream continues.
    """

    grpc_type: ClassVar = "bidi_stream"  # for metrics

    method: str
    request: type[Message]
    answer: Answer
    refuse: Callable[[Any, Status], Message]  # given an empty request if it could not be parsed
    model_field: str
    parse: Parse | None = None
    is_probe: bool = False


Rpc = Unary | Stream | Pipeline


def services(table: Sequence[Rpc]) -> list[str]:
    """Return the full names of the services in a table, sorted."""
    return sorted({rpc.method.split("/")[1] for rpc in table})
