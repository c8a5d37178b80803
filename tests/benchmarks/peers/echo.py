"""Echo over one transport: h2corn bare, ours over it, or ours over grpc.aio. Prints its port."""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import h2corn
import uvloop
from h2corn._lib import prepare_tls

from serving.transport.around import WireUnary
from serving.transport.grpc_server import GrpcServer
from serving.transport.h2_server import H2Server
from serving.transport.table import Call

METHOD = "/echo.Echo/Say"
_MAX_MESSAGE_BYTES = 2**20

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


async def _echo(message: bytes, call: Call) -> bytes:
    call.request_id = "0"
    return message


async def _bare(
    _scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """The least that an ASGI application can do for a gRPC call."""
    event = await receive()
    headers = [(b"content-type", b"application/grpc")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": event["body"]})
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})


async def _serve_bare() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    print(listener.getsockname()[1], flush=True)
    config = h2corn.Config(
        bind=("127.0.0.1:0",), grpc=True, lifespan="off", access_log=False, date_header=False
    )
    server = h2corn.Server(_bare, config)
    await server._serve_worker_fds([listener.detach()], prepared_tls=prepare_tls(config))


async def _serve(kind: str) -> None:
    if kind == "bare":
        await _serve_bare()
        return
    transport = H2Server if kind == "h2" else GrpcServer
    rows = [WireUnary(METHOD, _echo)]
    async with transport(rows, host="127.0.0.1", port=0, max_message_bytes=_MAX_MESSAGE_BYTES) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
