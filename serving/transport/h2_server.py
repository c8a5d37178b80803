"""Serves wrapped RPCs over HTTP/2 through h2corn, a Rust server of ASGI. Knows no message and no domain.

Here are sockets, limits, start and stop; grpc_app.py has what happens to one call.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import h2corn
from h2corn._lib import prepare_tls
from h2corn._server import load_tls_material

from serving.errors import AddressUnavailable
from serving.transport.around import WireRpc
from serving.transport.grpc_app import GrpcApp
from serving.transport.shared_port import share_port
from serving.transport.tls import TlsFiles
from serving.transport.web_app import WebApp

# After the last call has ended new ones are refused as UNAVAILABLE for as long as clients need to hear it.
_REFUSING_S = 0.2
# For the last answers to be written; streams that are still open are cut after it.
_CLOSING_S = 0.5

_BACKLOG = 1024
_MAX_STREAMS = 4096  # of one connection
_MAX_HEADER_BYTES = 64 * 2**10
_KEEPALIVE_S = 60  # a peer that is silent and does not acknowledge for about twice as long is gone
_KEEPALIVE_PROBES = 4
_STALL_S = 600.0  # a client may leave its answers unread for as long


class H2Server:
    """An h2corn server in this event loop. `async with` binds and starts it; `stop` ends it gracefully."""

    def __init__(
        self,
        rpcs: Sequence[WireRpc],
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
        shares_port: bool = False,
    ) -> None:
        """Store the options.

        Args:
            rpcs: what it answers.
            host: to listen on.
            port: 0 takes a free one.
            max_message_bytes: of one request.
            tls: without it calls are in the clear.
            shares_port: with other processes. Else a port that is taken is an error.
        """
        self.host = host
        self.port = port
        self._shares_port = shares_port
        web = WebApp(rpcs, max_message_bytes=max_message_bytes)
        app = GrpcApp(rpcs, max_message_bytes=max_message_bytes, other=web)
        self._config = h2corn.Config(
            bind=("127.0.0.1:0",),  # not used: it is given a socket
            grpc=True,
            lifespan="off",
            access_log=False,
            log_format="json",
            date_header=False,
            runtime_threads=1,
            max_concurrent_streams=_MAX_STREAMS,
            h2_max_header_list_size=_MAX_HEADER_BYTES,
            timeout_keep_alive=0,  # idle connections stay: they cost little, and a new one a round trip
            timeout_graceful_shutdown=_CLOSING_S,
            h2_timeout_response_stall=_STALL_S,
            **({} if tls is None else _tls_options(tls)),
        )
        self._server = h2corn.Server(app, self._config)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        listener = _listen(self.host, self.port, shares_port=self._shares_port)
        self.port = listener.getsockname()[1]
        # What the workers of h2corn's own supervisor run: `serve` would print a banner among our logs.
        self._serving = asyncio.create_task(
            self._server._serve_worker_fds(  # noqa: SLF001
                [listener.detach()], prepared_tls=prepare_tls(self._config, load_tls_material(self._config))
            )
        )
        await self._server.wait_started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def stop(self, *, until: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """End running calls gracefully, at most for timeout_s seconds, then say goodbye and close.

        Args:
            until: refuses new calls, and returns when nothing runs that must be waited for.
            timeout_s: after which everything is cut.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await until()
                await asyncio.sleep(_REFUSING_S)
        await self._close()

    async def _close(self) -> None:
        if self._serving is not None:
            self._server.shutdown()
            await self._serving
            self._serving = None


def _listen(host: str, port: int, *, shares_port: bool) -> socket.socket:
    """Bind and listen. A port that is taken is an error, not half of the traffic; dead peers are found."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressUnavailable(f"gRPC cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S // _KEEPALIVE_PROBES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        if shares_port:
            share_port(listener)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressUnavailable(f"gRPC cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    return listener


def _tls_options(tls: TlsFiles) -> dict[str, Any]:
    options = {"certfile": tls.cert_file, "keyfile": tls.key_file}
    if tls.client_ca_file is None:
        return options
    return {**options, "ca_certs": tls.client_ca_file, "cert_reqs": "required"}
