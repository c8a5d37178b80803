"""What the choices on the request path cost beside what they replaced: in one process, in turn."""

import asyncio
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from PIL import Image
from prometheus_client import CollectorRegistry, Histogram

from serving.bundle import ImageLimits, decode_image
from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from serving.metrics.counters import HistogramValue
from serving.pb.inference import grpc_service_pb2 as pb
from tests.benchmarks.calls import infer_message
from tests.benchmarks.images import encode
from tests.benchmarks.networks import lenet

ROUNDS = 9
WINDOW_S = 0.05
PAUSE_S = 0.001

Work = Callable[[], Awaitable[object]]


def choices(threads: ThreadPoolExecutor) -> dict[str, Work]:
    """What is timed, by name."""
    bundle = lenet()
    image = bundle.golden().images[:1]  # (1, 28, 28, 1)
    message = infer_message(bundle, image).SerializeToString()
    png, limits = encode(Image.fromarray(image[0, :, :, 0]), "PNG"), ImageLimits()
    engine = OnnxEngine.load(bundle.model_file, Device("cpu", 0, "benchmark"), threads=1, max_batch_size=1)
    histogram = Histogram("h", "h", registry=CollectorRegistry())
    ours = HistogramValue(Histogram.DEFAULT_BUCKETS[:-1])

    @contextmanager
    def generated() -> Iterator[None]:
        yield

    def enter() -> None:
        with generated():
            pass

    async def wait_for_a_future() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future

    async def go_to_a_thread() -> None:
        await asyncio.get_running_loop().run_in_executor(threads, int)

    return {
        "protobuf parses a ModelInfer of 784 pixels": _sync(lambda: pb.ModelInferRequest.FromString(message)),
        "one observation, prometheus_client": _sync(lambda: histogram.observe(0.001)),
        "one observation, our counters": _sync(lambda: ours.observe(0.001)),
        "a context manager made of a generator": _sync(enter),
        "a future, and waking its task": wait_for_a_future,
        "a thread and back": go_to_a_thread,
        "a 28 x 28 PNG decoded": _sync(lambda: decode_image(png, limits)),
        "LeNet-5, without a pause": _sync(lambda: engine.run(image)),
        "LeNet-5, after a pause of 1 ms": _paused(lambda: engine.run(image)),
    }


def _sync(work: Callable[[], object]) -> Work:
    async def run() -> None:
        work()

    return run


def _paused(work: Callable[[], object]) -> Work:
    async def run() -> float:
        time.sleep(PAUSE_S)  # noqa: ASYNC251 - the pause is what is looked at
        started_s = time.perf_counter()
        work()
        return time.perf_counter() - started_s

    return run


async def _measure(work: Work) -> float:
    """Microseconds by the clock; of work that says itself how long it took, what it says."""
    took_s, count = 0.0, 0
    while took_s < WINDOW_S:
        started_s = time.perf_counter()
        said_s = await work()
        took_s += said_s if isinstance(said_s, float) else time.perf_counter() - started_s
        count += 1
    return took_s / count * 1e6


async def _medians(works: dict[str, Work]) -> dict[str, tuple[float, float, float]]:
    order = random.Random(3)  # noqa: S311 - an order, no secret
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name in order.sample(list(works), len(works)):
            taken[name].append(await _measure(works[name]))
    return {name: (statistics.median(us), min(us), max(us)) for name, us in taken.items()}


def main() -> None:
    """Print a table."""
    print(f"{len(os.sched_getaffinity(0))} cores, medians [lowest, highest] of {ROUNDS} rounds")
    print("| | microseconds |\n| --- | --- |")
    with ThreadPoolExecutor(1) as threads:
        for name, (median, low, high) in asyncio.run(_medians(choices(threads))).items():
            print(f"| {name} | {median:.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
