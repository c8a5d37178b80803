"""Who is measured: a server under one kind of load, or a piece of work without any server.

A contender is a function that measures itself once, for a while, and returns facts by name:

    cpu_ms          CPU time of the server's whole process tree for a request (of streams: an image)
    requests_per_s  by the clock
    apart_per_s     the same, had the client not shared cores with the server
    p50_ms, p99_ms  from sending a request to the end of its answer
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from serving.bundle import Bundle, ImageLimits, apply_geometry, decode_image
from tests.benchmarks import calls, networks, servers
from tests.benchmarks.load import Load, Request, run_load
from tests.benchmarks.networks import LENET, PHOTOGRAPHS, TENSORS
from tests.benchmarks.peers.preparation import open_session
from tests.benchmarks.processes import CLIENT_CORES, CORES, SERVER_CORES, cores_kept_awake, pinned
from tests.benchmarks.servers import Server, start_lenserve

Facts = Mapping[str, float]
Contender = Callable[["Stage", float], Facts]

Entrant = tuple[servers.Start, Callable[..., Request], str]

_ONE_BATCH = 8
_MOMENT_S = 0.2
_LEAST_TURNS = 4  # of everyone in flight: the first and the last are unlike the others


class Stage:
    """The servers that contenders need: started when first asked for, all stopped at the end."""

    def __init__(self, entrants: Mapping[str, Entrant] | None = None) -> None:
        self._entrants = ENTRANTS if entrants is None else entrants
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
            start, write_request, model = self._entrants[name]
            bundle, payload = _bundle(model), _payload(model)
            self._servers[name] = server = start(bundle)
            self._stack.callback(server.process.stop)
            expected = calls.onnx_answer(bundle, payload)
            self._requests[name] = calls.proven(write_request(bundle, payload), server.port, expected)
        return self._servers[name], self._requests[name]


@cache
def _bundle(model: str) -> Bundle:
    return networks.lenet() if model == LENET else networks.backbone_bundle(model)


def _payload(model: str) -> calls.Pixels | bytes:
    return networks.photograph() if model == PHOTOGRAPHS else _bundle(model).golden().images[:1]


def _ours(*options: str, transport: str = "h2", cores: Sequence[int] = SERVER_CORES) -> servers.Start:
    return partial(start_lenserve, options=("--transport", transport, *options), cores=cores)


_OURS = _ours()

# server: (how it is started, how it is asked, with which network)
ENTRANTS: dict[str, Entrant] = {
    "lenserve": (_OURS, calls.infer_request, LENET),
    # grpc.aio brings calls one by one: they only meet where the first one waits, as it does in the peers.
    "lenserve grpc": (
        _ours("--max-queue-delay-s", "0.001", transport="grpc"),
        calls.infer_request,
        LENET,
    ),
    "lenserve stream": (_OURS, calls.stream_request, LENET),
    "lenserve two workers": (_ours("--workers", "2", cores=CORES[:2]), calls.infer_request, LENET),
    "triton": (servers.start_triton, calls.triton_request, LENET),
    "tutorial": (servers.start_tutorial, calls.tutorial_request, LENET),
    "mosec": (servers.start_mosec, calls.mosec_request, LENET),
    "lenserve on h2corn": (servers.start_h2corn, calls.infer_request, LENET),
    "lenserve jpeg": (_OURS, calls.infer_request, PHOTOGRAPHS),
    # An operator who promises a latency bounds the queue: 16 photographs are about 100 ms.
    "lenserve jpeg, 16 pending": (
        _ours("--max-pending-images", "16", "--max-images", "16"),
        calls.infer_request,
        PHOTOGRAPHS,
    ),
    "triton jpeg": (servers.start_triton, calls.triton_request, PHOTOGRAPHS),
    "tutorial jpeg": (servers.start_tutorial, calls.tutorial_request, PHOTOGRAPHS),
    "mosec jpeg": (servers.start_mosec, calls.mosec_request, PHOTOGRAPHS),
    "lenserve resnet18": (_ours("--max-batch-size", str(_ONE_BATCH)), calls.infer_request, TENSORS),
}


def closed_loop(
    name: str, in_flight: int, *, most_connections: int = 4, client_cores: Sequence[int] = CLIENT_CORES
) -> Contender:
    """A fixed number of requests in flight, on a few connections (HTTP/1.1: one each)."""

    def measure(stage: Stage, duration_s: float) -> Facts:
        server, request = stage.ask(name)
        connections = in_flight if request.http1 else min(most_connections, in_flight)
        streams = in_flight // connections
        load_it = partial(
            run_load, request, server.port, connections=connections, streams=streams, cores=client_cores
        )
        rate = stage.rates.get((name, in_flight)) or _first_rate(load_it, in_flight)
        requests = in_flight * max(_LEAST_TURNS, round(rate * duration_s / in_flight))
        cpu_s = server.process.cpu_s()
        load = load_it(requests=requests)
        stage.rates[name, in_flight] = load.requests_per_s
        return {
            "cpu_ms": (server.process.cpu_s() - cpu_s) * 1000 / (requests * request.messages),
            "requests_per_s": load.requests_per_s * request.messages,
            "apart_per_s": load.requests_per_s * _without_client(load, server, client_cores),
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
        }

    return measure


def awake(contender: Contender) -> Contender:
    """The same where idle cores do not halt at once."""

    def measure(stage: Stage, duration_s: float) -> Facts:
        with cores_kept_awake():
            return contender(stage, duration_s)

    return measure


def _without_client(load: Load, server: Server, client_cores: Sequence[int]) -> float:
    """How much faster it would be if the client did not take its time from the server's cores."""
    shared = len(set(server.cores) & set(client_cores)) / len(client_cores)
    return len(server.cores) / (len(server.cores) - load.client_cores * shared)


def start_up(_stage: Stage, _duration_s: float, *, checkout: Path | None = None) -> Facts:
    """From the command to ready with LeNet-5, and the memory it has then.

    Args:
        checkout: another working tree of this project, whose code runs.
    """
    started_s = time.perf_counter()
    server = start_lenserve(_bundle(LENET), checkout=checkout)
    start_s = time.perf_counter() - started_s
    resident_mib = server.process.resident_mib()
    server.process.stop()
    return {"start_s": start_s, "resident_mib": resident_mib}


def overload(stage: Stage, duration_s: float) -> Facts:
    """An open loop of photographs by `lenserve bench`, at 80 % and at 200 % of what a closed loop reached.

    Capacity is measured before and after, because the machine's own changes between.
    """
    server, _ = stage.ask("lenserve jpeg, 16 pending")
    window = ("--seconds", str(1.5 * duration_s), "--warm-up-seconds", str(duration_s / 4))
    closed = (*window, "--concurrency", "12")
    before = _bench(server, *closed)[0]["requests_per_s"]
    normal, over = _bench(server, *window, "--rate", f"{0.8 * before},{2 * before}")
    after = _bench(server, *closed)[0]["requests_per_s"]
    return {
        "requests_per_s": over["requests_per_s"],
        "p50_ms": over["p50_ms"],
        "p99_ms": over["p99_ms"],
        "goodput": over["requests_per_s"] / statistics.mean((before, after)),
        "p99_growth": over["p99_ms"] / normal["p99_ms"],
    }


def _bench(server: Server, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "serving.cli", "bench", "--server", f"127.0.0.1:{server.port}", "--json"]
    command += ["--model", PHOTOGRAPHS, "--image", str(networks.PHOTOGRAPH_FILE), *options]
    with pinned(CLIENT_CORES):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lenserve bench ended with {done.returncode}:\n{done.stderr}")
    points: list[dict[str, Any]] = json.loads(done.stdout)["points"]
    return points


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
