"""The interface between HTTP servers and applications: ASGI 3 with one more event.

A whole answer with status 200 can be one event, `ANSWER`, if the server supports it. Three events take 2 us
longer; a LeNet-5 request takes 34 us.
"""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

# {"type": ANSWER, "headers": tuple of pairs, "body": bytes, "trailers": pairs}
ANSWER = "lenserve.http.answer"
TRAILERS = "http.response.trailers"

# The scope's extensions if the server supports both.
EXTENSIONS: dict[str, dict[str, Any]] = {TRAILERS: {}, ANSWER: {}}

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Coroutine[Any, Any, None]]
