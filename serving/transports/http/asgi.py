"""The interface between HTTP servers and applications: ASGI 3, and one event more.

A whole answer with status 200 can be one event, `ANSWER`, where the server supports it. As three events it
would cost more CPU than a small network does.
"""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

# {"type": ANSWER, "headers": tuple of pairs, "body": bytes, "trailers": pairs}
ANSWER = "lenserve.http.answer"
TRAILERS = "http.response.trailers"

# The scope's extensions of a server that supports both.
EXTENSIONS: dict[str, dict[str, Any]] = {TRAILERS: {}, ANSWER: {}}

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Coroutine[Any, Any, None]]
