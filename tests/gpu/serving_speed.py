"""How fast a large network is served on this machine: bare, by our engine, and over gRPC; all in one run.

The bare loop is ONNX Runtime's IO binding: images from the host's memory in, probabilities out to it, once as
separate kernels and once as a CUDA graph.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime import InferenceSession, OrtValue, RunOptions
from PIL import Image
from rich.console import Console

from serving.bench.advice import find_knee
from serving.bench.plan import ClosedLoop, Plan
from serving.bench.points import Point
from serving.bench.run import run_plan
from serving.bundle import Bundle, Geometry, Repository, variant_file
from serving.client.client import Client
from serving.engine.base import Device, batch_buckets
from serving.engine.devices import find_device
from serving.engine.onnx import OnnxEngine, best_optimizations, providers
from serving.engine.sessions import open_onnx
from tests.benchmarks.servers import Server, start_lenserve
from tests.gpu import machine, networks
from tests.gpu.preparing import prepared_per_s
from tests.gpu.rows import PartOptions, Rows
from tests.gpu.sizes import Sizes

_WARM_RUNS = 3
_BUSY = 0.85  # of a core: such a client measures itself


def measure(options: PartOptions, rows: Rows) -> None:
    """From the network outwards: engine, server, clients."""
    sizes = options.sizes
    with TemporaryDirectory() as name:
        folder = Path(name)
        repository = Repository(folder / "repository")
        repository.root.mkdir()
        began_s = time.monotonic()
        bundle = networks.backbone(repository, sizes.network, sizes.side, options.device)
        rows.add(
            f"{sizes.network} with random weights made and exported", f"{time.monotonic() - began_s:.1f} s"
        )
        for precision in ("fp32", "fp16"):
            with rows.trying(f"{bundle.model} {precision}, engine"):
                _engine(bundle, precision, options, rows)
        photograph = _photograph(folder)
        with rows.trying(f"{bundle.model} fp32, server"):
            _server(bundle, "fp32", options, rows, tensors=True)
        with rows.trying(f"{bundle.model} fp16, server"):
            _server(bundle, "fp16", options, rows, photograph, tensors=True)
        with rows.trying(f"{bundle.model} fp16, server without CUDA graphs"):
            _server(bundle, "fp16", options, rows, tensors=True, graphs=False)
        with rows.trying(f"{bundle.model} fp16, several processes"):
            _server(bundle, "fp16", options, rows, photograph, workers=sizes.workers)
        with rows.trying("LeNet-5, server"):
            small = Repository(folder / "small")
            small.root.mkdir()
            _lenet5(networks.lenet5(small), options, rows)
        with rows.trying("JPEGs"):
            _preparing(photograph, bundle.manifest.geometry, sizes, rows)


def _engine(bundle: Bundle, precision: str, options: PartOptions, rows: Rows) -> None:
    """Every batch size through the engine and bare, one after the other."""
    sizes = options.sizes
    device = find_device(options.device)
    file = bundle.model_file if precision == "fp32" else bundle.folder / variant_file("fp16")
    threads = len(os.sched_getaffinity(0)) if options.device == "cpu" else 1
    plan = best_optimizations(file, device)
    began_s = time.monotonic()
    engine = OnnxEngine.load(file, device, threads=threads, max_batch_size=max(sizes.batches))
    for size in batch_buckets(device, max(sizes.batches)) or sizes.batches:
        output = engine.run(_noise(size, sizes.side))
    captured = engine.captured_sizes
    rows.add(
        f"{bundle.model} {precision}: engine loaded and warm",
        f"{time.monotonic() - began_s:.1f} s, {plan}, CUDA graphs for batches {captured or 'none'}",
        wrong="" if bool(captured) == plan.cuda_graphs else "CUDA graphs were given up",
    )
    sessions = {
        "bare": open_onnx(
            file, providers(device, replace(plan, cuda_graphs=False)), threads=threads, device=device.name
        )
    }
    if plan.cuda_graphs:
        sessions["bare as a graph"] = open_onnx(
            file, providers(device, plan), threads=threads, device=device.name
        )
    widths = output.probabilities.shape[1], output.embedding.shape[1]
    for size in sizes.batches:
        images = _noise(size, sizes.side)
        runs: dict[str, Callable[[], object]] = {"engine": partial(engine.run, images)}
        for name, session in sessions.items():
            with rows.trying(f"{bundle.model} {precision}, batch {size}, {name}"):
                run = _bound(session, images, widths, device)
                run()
                runs[name] = run
        seconds = {name: _timed(run, sizes.window_s) for name, run in runs.items()}
        best = min(statistics.median(each) for name, each in seconds.items() if name != "engine")
        share = best / statistics.median(seconds["engine"])
        shown = "; ".join(f"{name} {_rate(each, size)}" for name, each in seconds.items())
        rows.add(
            f"{bundle.model} {precision}, batch {size}",
            f"{shown}; engine is {share:.2f} of the faster bare one",
            share=share,
            seconds={name: _summary(each) for name, each in seconds.items()},
        )


def _bound(
    session: InferenceSession, images: np.ndarray, widths: tuple[int, int], device: Device
) -> Callable[[], object]:
    """One run by IO binding: the input is copied to its place on the device, the outputs are copied back."""
    place = device.kind, device.index
    value = OrtValue.ortvalue_from_numpy(images, *place)
    outputs = [
        OrtValue.ortvalue_from_shape_and_type((len(images), width), np.float32, *place) for width in widths
    ]
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", value)
    for name, output in zip(("probabilities", "embedding"), outputs, strict=True):
        binding.bind_ortvalue_output(name, output)
    run_options = RunOptions()
    run_options.add_run_config_entry("gpu_graph_id", str(len(images)))  # one for each batch size

    def run() -> object:
        value.update_inplace(images)
        session.run_with_iobinding(binding, run_options)
        return [output.numpy() for output in outputs]

    return run


def _timed(run: Callable[[], object], window_s: float) -> list[float]:
    """Seconds of each run in a window."""
    for _ in range(_WARM_RUNS):
        run()
    seconds: list[float] = []
    until_s = time.perf_counter() + window_s
    while (began_s := time.perf_counter()) < until_s:
        run()
        seconds.append(time.perf_counter() - began_s)
    return seconds


def _rate(seconds: Sequence[float], batch: int) -> str:
    p50, p99 = np.percentile(seconds, [50, 99])
    return (
        f"{batch * len(seconds) / sum(seconds):,.0f} images/s, p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"
    )


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"n": len(seconds), "p50": float(p50), "p99": float(p99), "min": min(seconds), "max": max(seconds)}


def _server(
    bundle: Bundle,
    precision: str,
    options: PartOptions,
    rows: Rows,
    photograph: Path | None = None,
    *,
    tensors: bool = False,
    workers: int = 1,
    graphs: bool = True,
) -> None:
    """The server in processes of its own, asked by clients in others."""
    sizes = options.sizes
    several = ("--workers", str(workers), "--device-process") if workers > 1 else ()
    plain = () if graphs else ("--no-cuda-graphs",)
    batch = ("--max-batch-size", str(max(sizes.batches)))
    began_s = time.monotonic()
    before_mib = machine.used_mib() if options.device == "cuda" else 0
    with _running(bundle, options, "--precision", precision, *batch, *several, *plain) as server:
        who = f"{bundle.model} {precision}" + (f", {workers} workers and a device process" if several else "")
        who += "" if graphs else ", without CUDA graphs"
        mib = machine.used_mib() - before_mib if options.device == "cuda" else 0
        memory = f", {mib:,} MiB of the card's memory" if mib else ""
        rows.add(f"{who}: time to ready", f"{time.monotonic() - began_s:.1f} s{memory}")
        if tensors:
            _load(f"{who}, tensors over gRPC", server, bundle.model, options, rows)
        if photograph is not None:
            _load(f"{who}, JPEGs over gRPC", server, bundle.model, options, rows, photograph)


@contextmanager
def _running(bundle: Bundle, options: PartOptions, *more: str) -> Iterator[Server]:
    cores = sorted(os.sched_getaffinity(0))
    server = start_lenserve(bundle, ("--device", options.device, *more), cores=cores)
    try:
        yield server
    finally:
        server.process.stop()


def _load(  # noqa: PLR0917 - who is asked, and where the result goes
    what: str,
    server: Server,
    model: str,
    options: PartOptions,
    rows: Rows,
    photograph: Path | None = None,
    in_flight: Sequence[int] = (),
) -> None:
    """Closed loops of one image a request; the knee among them."""
    sizes = options.sizes
    plan = Plan(
        server=f"127.0.0.1:{server.port}",
        model=model,
        loops=[ClosedLoop(count) for count in in_flight or sizes.in_flight],
        images=[photograph] if photograph else [],
        processes=sizes.clients,
        warm_up_s=sizes.server_window_s / 3,
        window_s=sizes.server_window_s,
    )
    points = run_plan(plan, Console(quiet=True)).points
    knee = find_knee(points)
    best = max(points, key=lambda point: point.requests_per_s)
    shown = "; ".join(_point(point) + (" (knee)" if point is knee else "") for point in points)
    rows.add(
        what,
        f"{shown}; best {best.requests_per_s:,.0f}/s",
        wrong="; ".join(f"{point.loop}: {point.errors}" for point in points if point.errors),
        points=[point.to_json() for point in points],
    )


def _point(point: Point) -> str:
    if not point.latencies.count:
        return f"{point.loop}: none answered"
    p50, p99 = (point.latencies.quantile_s(share) * 1e3 for share in (0.5, 0.99))
    busy = f", a client's core {point.busiest_client:.0%} busy" if point.busiest_client > _BUSY else ""
    return f"{point.loop}: {point.requests_per_s:,.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms{busy}"


def _lenet5(bundle: Bundle, options: PartOptions, rows: Rows) -> None:
    """The smallest network: what a request costs where the network costs nothing; then memory over time."""
    with _running(bundle, options) as server:
        _load("LeNet-5, digits over gRPC", server, bundle.model, options, rows, in_flight=(1, 64))
        _mixed(server, bundle, options, rows)


def _mixed(server: Server, bundle: Bundle, options: PartOptions, rows: Rows) -> None:
    """Requests of 1 to 32 images, in an order that never settles; memory afterwards is what it was before."""
    sizes = options.sizes
    random = np.random.default_rng(0)
    counts = random.integers(1, 33, sizes.mixed_requests)
    shape = bundle.manifest.geometry.shape
    images = list(random.integers(0, 256, (32, *shape), dtype=np.uint8))  # (32, H, W, C)
    before = _memory(server, options.device)
    with Client(f"127.0.0.1:{server.port}") as client, ThreadPoolExecutor(16) as callers:
        answers = callers.map(
            lambda count: sum(1 for _ in client.classify_all(images[:count], model=bundle.model)),
            counts.tolist(),
        )
        answered = sum(answers)
    after = _memory(server, options.device)
    grown = {name: after[name] - before[name] for name in after}
    rows.add(
        f"memory after {sizes.mixed_requests:,} requests of 1 to 32 images",
        ", ".join(f"{name} {before[name]:,.0f} to {after[name]:,.0f} MiB" for name in after),
        wrong=""
        if answered == counts.sum() and grown.get("card", 0) <= 64 and grown["process"] <= 64
        else f"{answered:,} of {counts.sum():,} images answered; at most 64 MiB may be added",
        before=before,
        after=after,
    )


def _memory(server: Server, device: str) -> dict[str, float]:
    resident = {"process": server.process.resident_mib()}
    return resident | ({"card": float(machine.used_mib())} if device == "cuda" else {})


def _photograph(folder: Path) -> Path:
    """A JPEG file of 500x375 pixels: a temple, from scikit-learn."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415 - slow

    file = folder / "photograph.jpg"
    china = Image.fromarray(load_sample_image("china.jpg"))  # 640x427
    china.resize((562, 375), Image.Resampling.LANCZOS).crop((31, 0, 531, 375)).save(file, quality=90)
    return file


def _preparing(photograph: Path, geometry: Geometry, sizes: Sizes, rows: Rows) -> None:
    """What the host can feed a card with: JPEGs decoded and resized a second."""
    encoded = photograph.read_bytes()
    cores = len(os.sched_getaffinity(0))
    alone = prepared_per_s(encoded, geometry, sizes.images_per_s_window_s, 1)
    threads = prepared_per_s(encoded, geometry, sizes.images_per_s_window_s, cores)
    context = get_context("spawn")
    together = context.Barrier(cores)
    with ProcessPoolExecutor(cores, context, initializer=together.wait) as pool:  # all have imported all
        work = partial(prepared_per_s, encoded, geometry, threads=1)
        processes = sum(pool.map(work, [sizes.images_per_s_window_s] * cores))
    rows.add(
        f"JPEGs of 500x375 pixels made {geometry.width}x{geometry.height}",
        f"one thread {alone:,.0f}/s, {cores} threads {threads:,.0f}/s, {cores} processes {processes:,.0f}/s",
        one_thread=alone,
        threads=threads,
        processes=processes,
        cores=cores,
    )


def _noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).integers(
        0, 256, (count, side, side, 3), dtype=np.uint8
    )  # (N, H, W, C)
