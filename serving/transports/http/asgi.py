"""The interface between HTTP servers and applications: ASGI 3 with one more event and one more object.

A whole answer with status 200 can be one event, `ANSWER`, if the server supports it. Three events take 2 us
longer; a LeNet-5 request takes 34 us.

Our server's `receive` is a `RequestBody`: it counts the bytes that a request holds. Over HTTP/2, its requests
with the same headers share one scope: applications can keep in it what they have read from them.
"""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol

# {"type": ANSWER, "headers": tuple of pairs, "body": bytes, "trailers": pairs}
ANSWER = "lenserve.http.answer"
TRAILERS = "http.response.trailers"

# The scope's extensions if the server supports both.
EXTENSIONS: dict[str, dict[str, Any]] = {TRAILERS: {}, ANSWER: {}}

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Coroutine[Any, Any, None]]


class RequestRefused(Exception):
    """Raised by `receive`: the server receives no more of this request. The message is for the client."""

    reason = ""  # for counters


class OverBudget(RequestRefused):
    """The requests of this connection, or of all of them, hold too many bytes."""

    reason = "pending_bytes"


class RequestTooSlow(RequestRefused):
    """The rest of this request has not arrived in time."""

    reason = "too_slow"


REFUSAL_REASONS = (OverBudget.reason, RequestTooSlow.reason)


class AnswerOverBudget(ConnectionResetError):
    """Raised by `send`: too many answers wait for their clients to read them. Only trailers can follow."""

    has_head = False  # whether the head of this answer has been sent


class RequestBody(Protocol):
    """`receive`, and the bytes for which its request is charged.

    All received bytes are charged until the request's answer is complete. An application that holds fewer
    releases the others: a stream of messages those that it has answered. One that holds more charges them:
    decompressed messages.
    """

    may_pause: bool  # whether the client may stop sending: between two messages of a stream

    async def __call__(self) -> Event:
        """Return the next part of the request.

        Raises:
            OverBudget: the request holds too many bytes. Raised once; the rest is discarded.
            RequestTooSlow: nothing more is received.
        """

    def take_whole(self) -> bytes | None:
        """Return the whole request if it has arrived and nothing of it was received yet; otherwise None."""

    def charge(self, size: int) -> None:
        """Charge the request for more bytes.

        Raises:
            OverBudget: it would hold too many.
        """

    def release(self, size: int) -> None:
        """Release bytes that the application no longer holds, before the request ends."""


def request_body(receive: Receive) -> RequestBody:
    """Return `receive` with its charge; other servers count nothing: with one that does nothing."""
    return receive if hasattr(receive, "charge") else _Uncharged(receive)  # type: ignore[return-value]


class _Uncharged:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.may_pause = False

    async def __call__(self) -> Event:
        return await self._receive()

    def take_whole(self) -> bytes | None:
        return None

    def charge(self, size: int) -> None:
        pass

    def release(self, size: int) -> None:
        pass
