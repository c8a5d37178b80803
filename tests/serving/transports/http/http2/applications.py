"""Small ASGI applications for tests."""

from collections.abc import Callable
from typing import Any

from serving.transports.http.asgi import ANSWER, TRAILERS, App, Event, Receive, Send

HEAD = b"\x82\x86\x84"  # of GET / by HPACK's static table
CONTENT_LENGTH_4 = b"\x0f\x0d\x014"  # content-length: 4
START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
START_WITH_TRAILERS = START | {"trailers": True}
MIB = 2**20


def body_event(body: bytes, *, more: bool = False) -> dict[str, Any]:
    """An event with a part of an answer's body."""
    return {"type": "http.response.body", "body": body, "more_body": more}


async def read(receive: Receive) -> bytes:
    """Receive the whole body."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event["body"], event["more_body"]
    return body


async def echo(_scope: Event, receive: Receive, send: Send) -> None:
    """Answer with the body of the request."""
    body = await read(receive)
    await send(START)
    await send(body_event(body))


def answers(*events: dict[str, Any]) -> App:
    """An application that sends these events and receives nothing."""

    async def app(_scope: Event, _receive: Receive, send: Send) -> None:
        for event in events:
            await send(event)

    return app


FORMS: dict[str, Callable[[bytes], App]] = {
    "one body": lambda body: answers(START, body_event(body)),
    "two bodies": lambda body: answers(START, body_event(body[:7], more=True), body_event(body[7:])),
    "with trailers": lambda body: answers(
        START_WITH_TRAILERS, body_event(body), {"type": TRAILERS, "headers": [(b"a", b"1")]}
    ),
    "at once": lambda body: answers(
        {"type": ANSWER, "headers": (), "body": body, "trailers": [(b"a", b"1")]}
    ),
}


async def fail(*_: Any) -> None:
    """Raise."""
    raise ValueError("it failed")
