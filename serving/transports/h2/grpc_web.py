"""gRPC-Web as gRPC: an ASGI application before another. Trailers go into the body, where browsers see them.

As gRPC's doc/PROTOCOL-WEB.md says it; the text form is the same in base64.
"""

import base64
import binascii
from collections.abc import Iterable

from serving.transports.h2.grpc_framing import CONTENT_TYPE, PREFIX, RawHeaders, malformed
from serving.transports.http.asgi import ANSWER, EXTENSIONS, TRAILERS, App, Event, Receive, Send

GRPC_WEB = b"application/grpc-web"

_TEXT = b"application/grpc-web-text"
_TRAILERS_FLAG = 0x80


class GrpcWeb:
    """An ASGI application that lets another answer. A class because it holds the other."""

    def __init__(self, grpc: App) -> None:
        self._grpc = grpc

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Serve a request."""
        media_type = media_type_of(dict(scope["headers"]))
        is_text = media_type.startswith(_TEXT)
        headers = [pair for pair in scope["headers"] if pair[0] not in {b"content-type", b"te"}]
        as_grpc = {
            **scope,
            "headers": [*headers, (b"content-type", CONTENT_TYPE)],
            "extensions": EXTENSIONS,
        }
        response = _WebResponse(send, media_type, is_text=is_text)
        await self._grpc(as_grpc, _decoded(receive) if is_text else receive, response.send)


def media_type_of(headers: RawHeaders) -> bytes:
    """The content type without parameters, in lower case."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


class _WebResponse:
    """Sends gRPC's answers as gRPC-Web does. A class because trailers come after what was sent before."""

    def __init__(self, send: Send, content_type: bytes, *, is_text: bool) -> None:
        self._send = send
        self._content_type = content_type
        self._is_text = is_text
        self._has_trailers = False

    async def send(self, event: Event) -> None:
        """Trailers become a last frame of the body; where there is nothing else they stay headers."""
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
        encoded = base64.b64encode(body) if self._is_text else body
        await self._send({"type": "http.response.body", "body": encoded, "more_body": more})


def _trailers_frame(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    return PREFIX.pack(_TRAILERS_FLAG, len(lines)) + lines


def _decoded(receive: Receive) -> Receive:
    """Events whose base64 is undone, four letters at a time, wherever their chunks are cut."""
    rest = b""

    async def receive_decoded() -> Event:
        nonlocal rest
        event = await receive()
        text = rest + event.get("body", b"")
        whole = len(text) - len(text) % 4
        rest = text[whole:]
        try:
            return {**event, "body": base64.b64decode(text[:whole], validate=True)}
        except binascii.Error as error:
            raise malformed("the request is not valid base64") from error

    return receive_decoded
