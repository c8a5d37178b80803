"""Both transports, their differences, and servers over them for tests."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from serving.metrics.recorder import Metrics
from serving.rpc.middleware import Middleware
from serving.transports.grpc_aio.server import GrpcServer
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.rpc_over_http.server import H2Server
from serving.transports.tls import TlsFiles
from tests.serving.transports.conformance.echo import Echo

MAX_MESSAGE_BYTES = 2**20


@dataclass(frozen=True)
class Differences:
    """The only differences between the two transports on the wire."""

    # Invalid messages that are not detected: gRPC's core ignores or accepts them, or waits for ever.
    unnoticed: frozenset[str] = frozenset()
    # A unary call with no message or with several is an error.
    counts_messages: bool = True
    # A unary call is rejected by its header alone. gRPC's core hands calls over when they are complete.
    admits_before_reading: bool = True
    # The status for an unknown grpc-encoding; and whether the answer names known ones: doc/compression.md.
    unknown_compression: str = "UNIMPLEMENTED"
    names_compressions: bool = True
    # Other content types than gRPC's are rejected. gRPC's core answers them as gRPC.
    checks_content_type: bool = True
    # A call at the last moment of a stop can end as CANCELLED: grpc.aio sends no GOAWAY before it closes.
    may_cancel_at_stop: bool = False


DIFFERENCES = {
    "h2": Differences(),
    "grpc": Differences(
        unnoticed=frozenset({"an invalid flag", "cut off in its length", "cut off inside"}),
        counts_messages=False,
        admits_before_reading=False,
        unknown_compression="INTERNAL",
        names_compressions=False,
        checks_content_type=False,
        may_cancel_at_stop=True,
    ),
}

SERVERS = {"h2": H2Server, "grpc": GrpcServer}


@dataclass
class Served:
    """A running server and its methods."""

    server: H2Server | GrpcServer
    middleware: Middleware
    metrics: Metrics
    echo: Echo

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.server.port}"


class Serve(Protocol):
    """Runs a server of the test methods on a free port."""

    def __call__(
        self,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: TlsFiles | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> AbstractAsyncContextManager[Served]:
        """With `tls`, only TLS is accepted."""
