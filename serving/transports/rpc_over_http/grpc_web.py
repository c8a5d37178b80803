"""gRPC-Web: an ASGI application that wraps the one for gRPC and moves trailers to the body for browsers.

Specified in gRPC's doc/PROTOCOL-WEB.md. Only the binary form is supported, not base64.
"""

from collections.abc import Iterable

from serving.transports.http.asgi import (
    ANSWER,
    EXTENSIONS,
    TRAILERS,
    AnswerOverBudget,
    App,
    Event,
    Receive,
    Send,
)
from serving.transports.rpc_over_http.grpc_framing import CONTENT_TYPE, PREFIX, RawHeaders

_GRPC_WEB = b"application/grpc-web"
_TRAILERS_FLAG = 0x80


class GrpcWebApp:
    """An ASGI application for requests that `is_grpc_web` accepts."""

    def __init__(self, grpc: App) -> None:
        self._grpc = grpc

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = [pair for pair in scope["headers"] if pair[0] not in {b"content-type", b"te"}]
        as_grpc = {
            **scope,
            "headers": [*headers, (b"content-type", CONTENT_TYPE)],
            "extensions": EXTENSIONS,
        }
        answer = _WebAnswer(send, media_type_of(dict(scope["headers"])))
        await self._grpc(as_grpc, receive, answer.send)


def is_grpc_web(media_type: bytes) -> bool:
    """Whether it is application/grpc-web or application/grpc-web+proto; not application/grpc-web-text."""
    return media_type == _GRPC_WEB or media_type.startswith(_GRPC_WEB + b"+")


def media_type_of(headers: RawHeaders) -> bytes:
    """Return the content type without parameters, in lower case."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


class _WebAnswer:
    """Sends the events of a gRPC answer as gRPC-Web."""

    def __init__(self, send: Send, content_type: bytes) -> None:
        self._send = send
        self._content_type = content_type
        self._has_trailers = False

    async def send(self, event: Event) -> None:
        """Send trailers as the last frame of the body. An answer that is only headers is unchanged."""
        if event["type"] == ANSWER:
            await self._send_head(200, event["headers"])
            await self._send_body(event["body"] + _trailers_frame(event["trailers"]), more=False)
        elif event["type"] == "http.response.start":
            self._has_trailers = event.get("trailers", False)
            await self._send_head(event["status"], event["headers"])
        elif event["type"] == TRAILERS:
            await self._send_body(_trailers_frame(event["headers"]), more=False)
        else:
            more = event.get("more_body", False) or self._has_trailers
            await self._send_body(event.get("body", b""), more=more)

    async def _send_head(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        headers = [pair for pair in fields if pair[0] != b"content-type"]
        headers.append((b"content-type", self._content_type))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except AnswerOverBudget as error:  # trailers would be read as the rest of a message
            raise ConnectionResetError(str(error)) from None


def _trailers_frame(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    return PREFIX.pack(_TRAILERS_FLAG, len(lines)) + lines
