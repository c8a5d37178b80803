"""Lenserve's own gRPC application on h2corn, an HTTP/2 server in Rust. Prints its port.

All above HTTP is the same as in `lenserve serve`. h2corn does not know our one-event answer: a unary answer
is sent as the three events of ASGI.
"""

import asyncio
import sys
from pathlib import Path

import uvloop
from h2corn import Config
from h2corn import Server as H2corn

from serving.server import build_table, run_server
from serving.settings import ServerSettings
from serving.transports.http.asgi import ANSWER, TRAILERS, App, Event, Receive, Send
from serving.transports.rpc_over_http.grpc_app import GrpcApp

_BODY = "http.response.body"


def in_three_events(app: App) -> App:
    """The application for a server that knows plain ASGI with trailers only."""

    async def serve(scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # no lifespan: the server starts without it

        async def send_events(event: Event) -> None:
            if event["type"] != ANSWER:
                await send(event)
                return
            start = {
                "type": "http.response.start",
                "status": 200,
                "headers": event["headers"],
                "trailers": True,
            }
            await send(start)
            await send({"type": _BODY, "body": event["body"]})
            await send({"type": TRAILERS, "headers": event["trailers"]})

        await app(scope, receive, send_events)

    return serve


async def main(repository: Path) -> None:
    """Serve until the process is stopped."""
    settings = ServerSettings(repository=repository, grpc_port=0, http_port=0)
    async with run_server(settings) as server:
        await server.models.scanned()
        table = build_table(server.classifier, server.models, server.metrics)
        rpcs = [server.middleware.wrap(rpc) for rpc in table]
        app = in_three_events(GrpcApp(rpcs, max_message_bytes=settings.max_message_bytes))
        h2corn = H2corn(
            app, Config(bind=("127.0.0.1:0",), grpc=True, runtime_threads=1, lifespan="off", access_log=False)
        )
        serving = asyncio.create_task(h2corn.serve())
        await h2corn.wait_started()
        print(h2corn.addresses[0].rpartition(":")[2], flush=True)
        await serving


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
