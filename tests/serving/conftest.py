"""Fixtures for tests of the server: stubs, gated servers, models, log events."""

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.batching.policy import BatchPolicy
from serving.bundle import Repository
from serving.classify.classifier import Classifier
from serving.engine.onnx import OnnxEngine
from serving.metrics.recorder import Metrics
from serving.models.loader import VersionLoader
from serving.models.readiness import Readiness
from serving.models.registry import KEEP_METRICS_S, PATIENCE_S, STUCK_S, Models
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.middleware import Middleware
from serving.server import build_table
from serving.transports import ports
from serving.transports.rpc_over_http.server import H2Server
from tests.serving.engines import CPU, GatedEngine
from tests.serving.gated_server import GatedServer, ServeGated
from tests.serving.log_events import LogEvents
from tests.serving.open_models import OpenModels
from tests.serving.stub import Connect, Stub


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect to servers. The channels are closed after the test."""
    async with AsyncExitStack() as stack:
        channels: list[grpc.aio.Channel] = []

        def connect_to(port: int, **options: Any) -> Stub:
            options_of_grpc = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options_of_grpc, **options)
            channels.append(channel)
            stack.push_async_callback(channel.close)
            return Stub(channel)

        yield connect_to


@pytest.fixture
def serve_gated(repository: Repository) -> ServeGated:
    """Run a server with a gate before each engine. Everything else is real."""

    @asynccontextmanager
    async def running(
        *,
        tokens: Tokens | None = None,
        scanned: bool = True,
        max_batch_size: int = 4,
        max_in_flight: int = 64,
        image_s: float = 0.0,
        **options: Any,
    ) -> AsyncIterator[GatedServer]:
        metrics = Metrics()
        middleware = Middleware(metrics, tokens, max_in_flight=max_in_flight)
        engines: list[GatedEngine] = []
        loads = threading.Event()
        if scanned:
            loads.set()

        def load(file: Path) -> GatedEngine:
            assert loads.wait(timeout=30)
            engines.append(GatedEngine(load_onnx(file), image_s=image_s))
            return engines[-1]

        load_onnx = partial(OnnxEngine.load, device=CPU, threads=1, max_batch_size=max_batch_size)
        policy = BatchPolicy(max_batch_size)
        loader = VersionLoader(repository, load, policy=policy, warm_sizes=(1,), metrics=metrics)
        async with (
            Models(loader, poll_interval_s=0.02) as models,
            Classifier(models, metrics=metrics, **options) as classifier,
            H2Server(
                [middleware.wrap(rpc) for rpc in build_table(classifier, models, metrics)],
                host="127.0.0.1",
                port=0,
                max_message_bytes=2**20,
            ) as server,
        ):
            if scanned:
                await models.scanned()
            try:
                yield GatedServer(server, metrics, models, classifier, middleware, engines, loads)
            finally:
                loads.set()
                for engine in engines:
                    engine.gate.set()

    return running


@pytest.fixture
def refuse_accepts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[OSError]]:
    """Let the next connection of the running event loop fail, and each for which an error is appended."""

    def refuse() -> list[OSError]:
        monkeypatch.setattr(ports, "_PAUSE_S", 0.01)
        loop = asyncio.get_running_loop()
        accept, refusals = loop.sock_accept, [OSError(errno.EMFILE, "Too many open files")]

        async def accept_at_the_second_try(listener: socket.socket) -> tuple[socket.socket, object]:
            if refusals:
                raise refusals.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", accept_at_the_second_try, raising=False)
        return refusals

    return refuse


@pytest.fixture
def open_models(repository: Repository) -> OpenModels:
    """Open `Models` on the test's repository."""

    @asynccontextmanager
    async def opened(
        *,
        scanned: bool = True,
        max_batch_size: int = 4,
        warm_sizes: tuple[int, ...] = (1,),
        poll_interval_s: float = 3600,
        parallel_loads: int = 1,
        keep_metrics_s: float = KEEP_METRICS_S,
        patience_s: float = PATIENCE_S,
        stuck_s: float = STUCK_S,
        readiness: Readiness | None = None,
        proof_pause_s: float = 0.0,
        hung_run_s: float = 60.0,
        keep_warm_s: float = 0.0,
        look_interval_s: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Models]:
        arguments = {
            "load_engine": partial(OnnxEngine.load, device=CPU, threads=1, max_batch_size=max_batch_size),
            "policy": BatchPolicy(max_batch_size),
            "metrics": Metrics(),
            **options,
        }
        loader = VersionLoader(repository, warm_sizes=warm_sizes, **arguments)
        async with Models(
            loader,
            poll_interval_s=poll_interval_s,
            parallel_loads=parallel_loads,
            keep_metrics_s=keep_metrics_s,
            patience_s=patience_s,
            stuck_s=stuck_s,
            readiness=readiness,
            proof_pause_s=proof_pause_s,
            hung_run_s=hung_run_s,
            keep_warm_s=keep_warm_s,
            look_interval_s=look_interval_s,
        ) as models:
            if scanned:
                await models.scanned()
            yield models

    return opened


@pytest.fixture
def log_events() -> Iterator[LogEvents]:
    """Log events of the serving core during the test."""
    events = LogEvents()
    logger = logging.getLogger("serving")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(events)
    yield events
    logger.removeHandler(events)
    logger.setLevel(level)
