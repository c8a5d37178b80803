"""Echo over one transport: ours, the HTTP/2 server below it bare, or grpc.aio. Prints its port."""

import asyncio
import socket
import sys
from functools import partial

import uvloop

from serving.rpc.handlers import Read, UnaryHandler, message_of
from serving.rpc.routes import Call
from serving.transports.grpc_aio.server import GrpcServer
from serving.transports.http.asgi import ANSWER, Event, Receive, Send
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.http2 import Http2Connection
from serving.transports.http.protocol_detection import ProtocolDetector
from serving.transports.rpc_over_http.server import H2Server

METHOD = "/echo.Echo/Say"
_MAX_MESSAGE_BYTES = 2**20


async def _echo(read: bytes | Read, call: Call) -> bytes:
    call.request_id = "0"
    return await message_of(read)


async def _bare(_scope: Event, receive: Receive, send: Send) -> None:
    """The least that an ASGI application can do for a gRPC call."""
    event = await receive()
    headers, trailers = ((b"content-type", b"application/grpc"),), ((b"grpc-status", b"0"),)
    await send({"type": ANSWER, "headers": headers, "body": event["body"], "trailers": trailers})


async def _serve_bare() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    print(listener.getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    bare = partial(Http2Connection, _bare, lambda _: None, BusyPoll())
    server = await loop.create_server(lambda: ProtocolDetector(bare, bare), sock=listener)
    await server.serve_forever()


async def _serve(kind: str) -> None:
    if kind == "bare":
        await _serve_bare()
        return
    transport = H2Server if kind == "h2" else GrpcServer
    rows = [UnaryHandler(METHOD, _echo)]
    async with transport(rows, host="127.0.0.1", port=0, max_message_bytes=_MAX_MESSAGE_BYTES) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
