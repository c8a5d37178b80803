"""Who is measured: a server under one kind of load, or a piece of work without any server.

A contender is a function that measures itself once, for a while, and returns facts by name:

    cpu_ms          CPU time of the server's whole process tree for a request (of streams: an image)
    requests_per_s  by the clock
    p50_ms, p99_ms  from sending a request to the end of its answer
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, partial
from types import TracebackType
from typing import Self

import numpy as np

from serving.bundle import Bundle, ImageLimits, apply_geometry, decode_image
from tests.benchmarks import calls, networks, servers
from tests.benchmarks.load import Load, Request, run_load
from tests.benchmarks.networks import LENET, PHOTOGRAPHS, TENSORS
from tests.benchmarks.peers.preparation import open_session
from tests.benchmarks.processes import SERVER_CORES, pinned
from tests.benchmarks.servers import Server, lenserve_knows, start_lenserve

Facts = Mapping[str, float]
Contender = Callable[["Stage", float], Facts]

_ONE_BATCH = 8
_MOMENT_S = 0.2
_LEAST_TURNS = 4  # of everyone in flight: the first and the last are unlike the others


class Stage:
    """The servers that contenders need: started when first asked for, all stopped at the end."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, int], float] = {}  # requests/s so far: how many fill a window
        self._servers: dict[str, Server] = {}
        self._requests: dict[str, Request] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask(self, name: str) -> tuple[Server, Request]:
        """A server and what to ask it; its answer has been compared with ONNX Runtime's."""
        if name not in self._servers:
            start, write_request, model = ENTRANTS[name]
            bundle, payload = _bundle(model), _payload(model)
            self._servers[name] = server = start(bundle)
            self._stack.callback(server.process.stop)
            expected = calls.onnx_answer(bundle, payload)
            self._requests[name] = calls.proven(write_request(bundle, payload), server.port, expected)
        return self._servers[name], self._requests[name]


def lenserve_options(transport: str) -> list[str]:
    """The choice of a transport, where there is one."""
    return ["--transport", transport] if lenserve_knows("--transport") else []


@cache
def _bundle(model: str) -> Bundle:
    return networks.lenet() if model == LENET else networks.backbone_bundle(model)


def _payload(model: str) -> calls.Pixels | bytes:
    return networks.photograph() if model == PHOTOGRAPHS else _bundle(model).golden().images[:1]


def _start_ours(bundle: Bundle, transport: str, *options: str) -> Server:
    return start_lenserve(bundle, *lenserve_options(transport), *options)


_OURS, _OURS_GRPC = partial(_start_ours, transport="h2"), partial(_start_ours, transport="grpc")

# server: (how it is started, how it is asked, with which network)
ENTRANTS: dict[str, tuple[servers.Start, Callable[..., Request], str]] = {
    "lenserve": (_OURS, calls.infer_request, LENET),
    "lenserve grpc": (_OURS_GRPC, calls.infer_request, LENET),
    "triton": (servers.start_triton, calls.triton_request, LENET),
    "tutorial": (servers.start_tutorial, calls.tutorial_request, LENET),
    "mosec": (servers.start_mosec, calls.mosec_request, LENET),
    "lenserve jpeg": (_OURS, calls.infer_request, PHOTOGRAPHS),
    "triton jpeg": (servers.start_triton, calls.triton_request, PHOTOGRAPHS),
    "tutorial jpeg": (servers.start_tutorial, calls.tutorial_request, PHOTOGRAPHS),
    "mosec jpeg": (servers.start_mosec, calls.mosec_request, PHOTOGRAPHS),
    "lenserve resnet18": (
        lambda bundle: _start_ours(bundle, "h2", "--max-batch-size", str(_ONE_BATCH)),
        calls.infer_request,
        TENSORS,
    ),
}


def closed_loop(name: str, in_flight: int) -> Contender:
    """A fixed number of requests in flight, on at most four connections (HTTP/1.1: one each)."""

    def measure(stage: Stage, duration_s: float) -> Facts:
        server, request = stage.ask(name)
        connections = in_flight if request.http1 else min(4, in_flight)
        load_it = partial(
            run_load, request, server.port, connections=connections, streams=in_flight // connections
        )
        rate = stage.rates.get((name, in_flight)) or _first_rate(load_it, in_flight)
        requests = in_flight * max(_LEAST_TURNS, round(rate * duration_s / in_flight))
        cpu_s = server.process.cpu_s()
        load = load_it(requests=requests)
        stage.rates[name, in_flight] = load.requests_per_s
        return {
            "cpu_ms": (server.process.cpu_s() - cpu_s) * 1000 / requests,
            "requests_per_s": load.requests_per_s,
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
        }

    return measure


def _first_rate(load_it: Callable[..., Load], in_flight: int) -> float:
    """Requests a second, from as many as take a moment."""
    requests = in_flight
    while (rate := load_it(requests=requests).requests_per_s) * _MOMENT_S > requests:
        requests *= 4
    return rate


def onnx_alone(model: str, batch: int) -> Contender:
    """ONNX Runtime on one thread of the server's core; a request is one image of a batch."""

    def measure(_stage: Stage, duration_s: float) -> Facts:
        bundle = _bundle(model)
        session = open_session(bundle.model_file)
        images = np.repeat(bundle.golden().images[:1], batch, axis=0)  # (batch, H, W, C) uint8
        return _repeat(lambda: session.run(["probabilities"], {"image": images}), batch, duration_s)

    return measure


def parts_alone(_stage: Stage, duration_s: float) -> Facts:
    """Decode, resize, normalise and run one photograph, one after the other, by the bundle's own code."""
    bundle, encoded = _bundle(PHOTOGRAPHS), networks.photograph()
    session, limits, geometry = open_session(bundle.model_file), ImageLimits(), bundle.manifest.geometry

    def once() -> None:
        pixels = apply_geometry(decode_image(encoded, limits), geometry)  # (224, 224, 3) uint8
        session.run(["probabilities"], {"image": pixels[None]})

    return _repeat(once, 1, duration_s)


def _repeat(work: Callable[[], object], images: int, duration_s: float) -> Facts:
    with pinned(SERVER_CORES):
        work()
        count, cpu_s, started_s = 0, time.thread_time(), time.perf_counter()
        while (wall_s := time.perf_counter() - started_s) < duration_s:
            work()
            count += images
        cpu_s = time.thread_time() - cpu_s
    return {"cpu_ms": cpu_s * 1000 / count, "requests_per_s": count / wall_s}
