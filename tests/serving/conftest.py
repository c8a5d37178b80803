"""Fixtures for tests of the server: stubs, gates before networks, an echo engine, models, log events."""

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.batching.policy import BatchPolicy
from serving.bundle import Repository
from serving.bundle.images import Pixels
from serving.classify.classifier import Classifier
from serving.engine.base import Device, Output
from serving.engine.onnx import OnnxEngine
from serving.errors import EngineError
from serving.metrics.recorder import Metrics
from serving.models.loader import VersionLoader
from serving.models.registry import Models
from serving.rpc.middleware import Middleware
from serving.rpc.tokens import Tokens
from serving.server import build_table
from serving.transports import ports
from serving.transports.h2.server import H2Server

CPU = Device("cpu", 0, "tests")


@dataclass(frozen=True)
class Refusal:
    """How a call failed, as its caller sees it."""

    code: str
    message: str
    reason: str  # of the ErrorInfo in grpc-status-details-bin
    request_id: str  # of the same
    trailers: dict[str, str | bytes]


class Stub:
    """Calls any method by its full name over a real channel; messages are found by their descriptors."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, request: Message, **options: Any) -> Any:
        """Answer of a unary method, such as `lenserve.v1.Classifier/Classify`."""
        return await self.start(method, request, **options)

    def start(self, method: str, request: Message | bytes, **options: Any) -> Any:
        """A call that runs. A request of bytes is sent as it is."""
        multicallable = self._channel.unary_unary(f"/{method}", _serialize, _response(method).FromString)
        return multicallable(request, **options)

    def stream(self, method: str, request: Message, **options: Any) -> Any:
        """The answers to one message."""
        multicallable = self._channel.unary_stream(f"/{method}", _serialize, _response(method).FromString)
        return multicallable(request, **options)

    def talk(
        self, method: str, requests: AsyncIterable[Message | bytes] | None = None, **options: Any
    ) -> Any:
        """A stream in both directions: of these requests, or of what is written to it."""
        multicallable = self._channel.stream_stream(f"/{method}", _serialize, _response(method).FromString)
        return multicallable(requests, **options)

    async def refusal(self, method: str, request: Message | bytes, **options: Any) -> Refusal:
        """How a call failed that has to fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.start(method, request, **options)
        return refusal_of(caught.value)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read a failed call."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    if status is not None:
        assert status.code == error.code().value[0]
        assert status.message == error.details()
        assert status.details[0].Unpack(info)
        assert info.domain == "lenserve"
    trailers = dict(error.trailing_metadata() or ())
    return Refusal(error.code().name, error.details(), info.reason, info.metadata["request_id"], trailers)


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def _response(method: str) -> type[Message]:
    service, name = method.split("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return message_factory.GetMessageClass(descriptor.output_type)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Stub]]:
    """Connect to the port of a server: `connect(server.grpc.port)` is a Stub."""
    async with AsyncExitStack() as stack:
        channels: list[grpc.aio.Channel] = []

        def connect_to(port: int, **options: Any) -> Stub:
            options_of_grpc = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options_of_grpc, **options)
            channels.append(channel)
            stack.push_async_callback(channel.close)
            return Stub(channel)

        yield connect_to


class GatedEngine:
    """A real network behind a gate, for tests of what happens while it runs. A fake of `Engine`."""

    max_images_on_loop = 0  # the gate must not block the event loop

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.runs: list[int] = []  # how many images, run by run

    def close(self) -> None:
        """Make the next run wait, and forget earlier runs."""
        self.gate.clear()
        self.entered.clear()
        self.runs.clear()

    def run(self, images: Pixels) -> Output:
        """Wait for the gate, then run, or raise `error`."""
        self.runs.append(len(images))
        self.entered.set()
        assert self.gate.wait(timeout=30)
        if self.error is not None:
            raise self.error
        return self._engine.run(images)


@dataclass
class GatedServer:
    """A server whose engines a test holds, in the order in which they were loaded."""

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


GatedServe = Callable[..., AbstractAsyncContextManager[GatedServer]]


@pytest.fixture
def serve_gated(repository: Repository) -> GatedServe:
    """Run a server with a gate before each engine. Everything else is real."""

    @asynccontextmanager
    async def running(
        *,
        tokens: Tokens | None = None,
        scanned: bool = True,
        max_batch_size: int = 4,
        max_in_flight: int = 64,
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
            engines.append(GatedEngine(load_onnx(file)))
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


class FakeEngine:
    """A fake of `Engine`: returns the first sample of each image, and remembers its runs."""

    max_images_on_loop = 0

    def __init__(self, *, poison: Collection[int] = ()) -> None:
        self.gate = threading.Event()  # closed (cleared): runs wait
        self.gate.set()
        self.entered = threading.Event()
        self.runs: list[list[int]] = []  # first samples of the images, run by run
        self._poison = frozenset(poison)  # a batch with one of these fails

    def run(self, images: Pixels) -> Output:
        """Answer (N, 1) float32 with the first sample of every image."""
        samples = images[:, 0, 0, 0]  # (N,)
        self.runs.append(samples.tolist())
        self.entered.set()
        assert self.gate.wait(timeout=30)
        if not self._poison.isdisjoint(samples.tolist()):
            raise EngineError(f"a batch of {len(images)} is poisoned")
        echo = samples[:, np.newaxis].astype(np.float32)  # (N, 1)
        return Output(echo, -echo)


@pytest.fixture(scope="session")
def fake_engine() -> type[FakeEngine]:
    """The class of fake engines."""
    return FakeEngine


RefuseAccepts = Callable[[], list[OSError]]


@pytest.fixture
def refuse_accepts(monkeypatch: pytest.MonkeyPatch) -> RefuseAccepts:
    """Let the next connection of the running event loop fail, and each for which an error is appended."""

    def refuse() -> list[OSError]:
        monkeypatch.setattr(ports, "_PAUSE_S", 0.01)
        loop = asyncio.get_running_loop()
        accept, refusals = loop.sock_accept, [OSError(errno.EMFILE, "Too many open files")]

        async def accept_at_the_second_try(listener: socket.socket) -> Any:
            if refusals:
                raise refusals.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", accept_at_the_second_try, raising=False)
        return refusals

    return refuse


OpenModels = Callable[..., AbstractAsyncContextManager[Models]]


@pytest.fixture
def open_models(repository: Repository) -> OpenModels:
    """Open `Models` on the test's repository. By default it is read once, before the test."""

    @asynccontextmanager
    async def opened(
        *,
        scanned: bool = True,
        max_batch_size: int = 4,
        warm_sizes: tuple[int, ...] = (1,),
        poll_interval_s: float = 3600,
        **options: Any,
    ) -> AsyncIterator[Models]:
        arguments = {
            "load_engine": partial(OnnxEngine.load, device=CPU, threads=1, max_batch_size=max_batch_size),
            "policy": BatchPolicy(max_batch_size),
            "metrics": Metrics(),
            **options,
        }
        loader = VersionLoader(repository, warm_sizes=warm_sizes, **arguments)
        async with Models(loader, poll_interval_s=poll_interval_s) as models:
            if scanned:
                await models.scanned()
            yield models

    return opened


class LogEvents(logging.Handler):
    """Events as they are logged, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._arrived = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, and wake who waits. All events of the core are logged on the event loop."""
        self.records.append(record)
        self._arrived.set()

    def named(self, event: str) -> list[logging.LogRecord]:
        """Those of one name so far."""
        return [record for record in self.records if record.getMessage() == event]

    async def wait_for(self, event: str, *, times: int = 1) -> logging.LogRecord:
        """The last of so many of that name, once they are there."""
        async with asyncio.timeout(20):
            while len(self.named(event)) < times:
                self._arrived.clear()
                await self._arrived.wait()
        return self.named(event)[times - 1]


@pytest.fixture
def log_events() -> Iterator[LogEvents]:
    """What the serving core logs during the test."""
    events = LogEvents()
    logger = logging.getLogger("serving")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(events)
    yield events
    logger.removeHandler(events)
    logger.setLevel(level)
