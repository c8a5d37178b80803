"""Where the CPU time of one LeNet-5 ModelInfer goes, stage by stage, from bytes to bytes without a transport.

Each stage is timed with all before it, one core, many requests in flight as tasks of one event loop; what a
stage adds is the difference. Every line is the median of ROUNDS rounds, in which all lines take turns.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np

from serving.batching.batcher import Batcher
from serving.batching.policy import BatchPolicy
from serving.bundle import ImageLimits, Repository
from serving.bundle.images import Pixels
from serving.classify.admission import Admission
from serving.classify.classifier import Classifier
from serving.classify.preprocessing import Preprocessor
from serving.classify.results import Inference
from serving.engine.base import Device, Output
from serving.engine.tuning import load_tuned
from serving.metrics.recorder import Metrics
from serving.models.loader import VersionLoader
from serving.models.registry import Models
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.middleware import Middleware
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.routes import Call, Unary
from serving.rpc.services.inference import InferenceService
from serving.turns import Turns
from tests.benchmarks.calls import infer_message
from tests.benchmarks.networks import lenet

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ROUNDS = 9
REQUESTS = 1600
MAX_BATCH_SIZE = 32
PAUSE_S = 1e-4
CPU = Device("cpu", 0, "benchmark")

Work = Callable[[], Awaitable[object]]


async def measure(in_flight: int) -> dict[str, float]:
    """CPU microseconds a request of every line."""
    bundle = lenet()
    metrics = Metrics()
    repository = Repository(bundle.folder.parents[1])
    load = partial(load_tuned, device=CPU, threads=1, cores=1, max_batch_size=MAX_BATCH_SIZE)
    policy = BatchPolicy(MAX_BATCH_SIZE)
    loader = VersionLoader(repository, load, policy=policy, warm_sizes=(1, MAX_BATCH_SIZE), metrics=metrics)
    models = Models(loader)
    async with models, Classifier(models, metrics=metrics) as classifier:
        await models.scanned()
        image = bundle.golden().images[:1]  # (1, 28, 28, 1)
        engine = models.lease(bundle.model).engine
        ready = Inference(bundle.model, bundle.version, bundle.manifest.labels, engine.run(image))
        async with Batcher(partial(_repeat, ready), policy, max_images_on_loop=MAX_BATCH_SIZE) as idle:
            lines = _lines(classifier, models, metrics, image, ready, idle)
            medians = await _medians(lines, in_flight)
        batch = np.repeat(image, max(1, min(in_flight, MAX_BATCH_SIZE)), axis=0)
        alone_us = _cpu_us(lambda: engine.run(batch), len(batch))  # before the engine is closed
    return {**medians, "ONNX Runtime alone, a batch of those in flight": alone_us}


def _lines(  # noqa: PLR0917 - every stage of the path
    classifier: Classifier, models: Models, metrics: Metrics, image: Pixels, ready: Inference, idle: Batcher
) -> dict[str, Work]:
    """What is timed, by name."""
    regions = Regions()
    message = infer_message(lenet(), image).SerializeToString()
    service = InferenceService(classifier, models, metrics, regions)
    instant = InferenceService(_Instant(ready), models, metrics, regions)  # type: ignore[arg-type]
    answer = pb.ModelInferResponse()

    async def nothing(_request: bytes, _call: Call) -> pb.ModelInferResponse:
        return answer

    async def paused() -> None:
        time.sleep(PAUSE_S)  # noqa: ASYNC251 - the core idles, as it does while a lonely client thinks
        await everything()

    def wrapped(row: Unary) -> Work:
        wire = Middleware(Metrics()).wrap(row)
        return lambda: wire.answer(message, Call({}))

    def infer_row(of: InferenceService) -> Unary:
        return next(row for row in of.rpcs() if isinstance(row, Unary) and row.method == METHOD)

    everything = wrapped(infer_row(service))
    return {
        "middleware: id, counts, errors": wrapped(Unary(METHOD, pb.ModelInferRequest, nothing, parse=bytes)),
        "and the message <-> tensors": wrapped(infer_row(instant)),
        "batcher without a network": lambda: idle.submit(image),
        "classifier: lease, admission, batcher, network, counts": lambda: classifier.infer_tensor(
            image, model=ready.model
        ),
        "everything": everything,
        "everything, each time after a pause of 0.1 ms": paused,
    }


class _Instant:
    """A classifier that has the answer already."""

    def __init__(self, ready: Inference) -> None:
        self.admission = Admission(1, Preprocessor(ImageLimits(), 1))
        self.max_images = MAX_BATCH_SIZE
        self.turns = Turns()
        self._ready = ready

    async def infer_tensor(self, *_: object, **__: object) -> Inference:
        return self._ready


def _repeat(ready: Inference, images: Pixels) -> Output:
    count = len(images)
    return Output(
        np.repeat(ready.output.probabilities, count, axis=0), np.repeat(ready.output.embedding, count, axis=0)
    )


async def _medians(lines: dict[str, Work], in_flight: int) -> dict[str, float]:
    order = random.Random(3)  # noqa: S311 - an order, no secret
    taken: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(ROUNDS):
        for name in order.sample(list(lines), len(lines)):
            taken[name].append(await _load(lines[name], in_flight))
    return {name: statistics.median(values) for name, values in taken.items()}


async def _load(work: Work, in_flight: int) -> float:
    async def client() -> None:
        for _ in range(REQUESTS // in_flight):
            await work()

    started_s = time.process_time()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    return (time.process_time() - started_s) / (REQUESTS // in_flight * in_flight) * 1e6


def _cpu_us(run: Callable[[], object], images: int) -> float:
    times = []
    for _ in range(ROUNDS):
        started_s = time.process_time()
        for _ in range(REQUESTS // images):
            run()
        times.append((time.process_time() - started_s) / (REQUESTS // images * images) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print one table for one request in flight and for sixteen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measured = {in_flight: asyncio.run(measure(in_flight)) for in_flight in (1, 16)}
    if as_json:
        print(json.dumps(measured))
        return
    print("| CPU microseconds a request | 1 in flight | 16 in flight |\n| --- | --- | --- |")
    for name in measured[1]:
        print(f"| {name} | {measured[1][name]:.1f} | {measured[16][name]:.1f} |")


if __name__ == "__main__":
    main()
