"""A real server with a gate before each engine, for tests of what happens while a network runs."""

import threading
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.classify.classifier import Classifier
from serving.metrics.recorder import Metrics
from serving.models.registry import Models
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.middleware import Middleware
from serving.transports.rpc_over_http.server import H2Server
from tests.serving.engines import GatedEngine


@dataclass
class GatedServer:
    """A server and its gated engines, in the order of loading."""

    grpc: H2Server
    metrics: Metrics
    models: Models
    classifier: Classifier
    middleware: Middleware
    engines: list[GatedEngine] = field(default_factory=list)
    loads: threading.Event = field(default_factory=threading.Event)  # cleared: loading waits

    @property
    def engine(self) -> GatedEngine:
        """The newest engine."""
        return self.engines[-1]


class ServeGated(Protocol):
    """Runs a gated server."""

    def __call__(
        self,
        *,
        tokens: Tokens | None = None,
        scanned: bool = True,
        max_batch_size: int = 4,
        max_in_flight: int = 64,
        image_s: float = 0.0,
        **options: Any,
    ) -> AbstractAsyncContextManager[GatedServer]:
        """`image_s` is what each image takes, without CPU. Further options are those of `Classifier`."""
