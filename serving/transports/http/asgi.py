"""The interface between servers and applications of HTTP: ASGI 3, and one event more.

A whole answer with status 200 can be one event, `ANSWER`, where the server knows it: its three parts cost a
small call as much as its network.
"""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

# {"type": ANSWER, "headers": tuple of pairs, "body": bytes, "trailers": pairs}
ANSWER = "lenserve.http.answer"
TRAILERS = "http.response.trailers"

# Of the scope, where both are known.
EXTENSIONS: dict[str, dict[str, Any]] = {TRAILERS: {}, ANSWER: {}}

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Coroutine[Any, Any, None]]
