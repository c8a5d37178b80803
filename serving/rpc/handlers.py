"""RPCs for transports: handlers from bytes to bytes, and the failure of a call. Independent of messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from serving.rpc.routes import Call
from serving.rpc.status import Status

REQUEST_ID_KEY = "x-request-id"


class Failure(Exception):
    """Ends a call with this status, which transports send as trailers."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


# Receives the whole message of a request, and decompresses or converts it. Raises Failure.
Read = Callable[[], Awaitable[bytes]]


async def message_of(read: bytes | Read) -> bytes:
    """Return the message that has arrived, or receive it."""
    return read if isinstance(read, bytes) else await read()


# Counts a call that ends with a status before `answer` is called, and gives it a request id.
Reject = Callable[[Call, Status], None]


def uncounted(_call: Call, _status: Status) -> None:
    """Do nothing, as a `Reject`."""


@dataclass(frozen=True, slots=True)
class UnaryHandler:
    """One message in, one out. The message is read only if the call is admitted, unless it has arrived."""

    method: str  # /package.Service/Method
    answer: Callable[[bytes | Read, Call], Awaitable[bytes]]  # raises Failure; counts the call
    reject: Reject = uncounted


AnswerGroups = AsyncGenerator[Sequence[bytes], None]
AnswerStream = Callable[[AsyncIterator[bytes], Call], AnswerGroups]


@dataclass(frozen=True, slots=True)
class StreamHandler:
    """Messages in, messages out. Answers that are ready at the same time are yielded as one group."""

    method: str  # /package.Service/Method
    answer: AnswerStream  # raises Failure; counts the call
    reject: Reject = uncounted
    # Whether each message has one answer, in order. Otherwise a message is done when the next one is taken.
    answers_each: bool = False


Handler = UnaryHandler | StreamHandler
