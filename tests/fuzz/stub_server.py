"""All RPCs of the server without sockets: middleware, services, queues, models, and a stub of an engine."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serving.batching.policy import BatchPolicy
from serving.bundle import ImageLimits, Repository
from serving.bundle.images import Pixels
from serving.classify.classifier import Classifier
from serving.engine.base import Output
from serving.metrics.recorder import Metrics
from serving.models.loader import VersionLoader
from serving.models.registry import Models
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.handlers import Handler
from serving.rpc.middleware import Middleware
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.routes import Rpc
from serving.server import build_table
from tests.colours import write_colours
from tests.fuzz.folders import fast_folder

MODEL = "colours"
ALIAS = "best"
MAX_BATCH_SIZE = 4
LIMITS = ImageLimits(max_bytes=20_000, max_pixels=100_000)
_REGION_BYTES = 4096


class ColourEngine:
    """Computes what the network of tests/colours.py does, in numpy."""

    max_images_on_loop = 1024

    def run(self, images: Pixels) -> Output:
        """Return softmax(4 * mean / 255) of each channel."""
        means = images.mean(axis=(1, 2), dtype=np.float32)  # (N, 3)
        powers = np.exp(means * np.float32(4 / 255))
        return Output(powers / powers.sum(axis=1, keepdims=True), means)


@dataclass(frozen=True, slots=True)
class StubServer:
    """A server's RPCs, and its handlers with and without tokens."""

    table: Sequence[Rpc]
    handlers: Sequence[Handler]
    handlers_with_tokens: Sequence[Handler]
    region_key: str  # of a shared memory object that may be registered


@asynccontextmanager
async def open_stub_server() -> AsyncIterator[StubServer]:
    """Publish two versions, and serve them."""
    key = f"lenserve-fuzz-{os.getpid()}"
    shared = Path("/dev/shm") / key  # noqa: S108 - where shared memory objects are
    shared.write_bytes(bytes(_REGION_BYTES))
    try:
        with fast_folder() as folder:
            repository = Repository(folder)
            for _ in range(2):
                repository.publish(MODEL, partial(write_colours, rotate=0, lie=False))
            repository.set_alias(MODEL, ALIAS, 1)
            async with _serve(repository, key) as server:
                yield server
    finally:
        with suppress(FileNotFoundError):
            shared.unlink()


@asynccontextmanager
async def _serve(repository: Repository, key: str) -> AsyncIterator[StubServer]:
    metrics = Metrics()
    loader = VersionLoader(
        repository,
        lambda _file: ColourEngine(),
        policy=BatchPolicy(MAX_BATCH_SIZE),
        warm_sizes=(1, MAX_BATCH_SIZE),
        metrics=metrics,
    )
    async with (
        Models(loader, poll_interval_s=3600) as models,
        Classifier(
            models, metrics=metrics, limits=LIMITS, max_images=16, max_pending_images=64
        ) as classifier,
        Regions(key, max_bytes=_REGION_BYTES) as regions,
    ):
        await models.scanned()
        table = build_table(classifier, models, metrics, regions)
        plain, guarded = Middleware(metrics), Middleware(metrics, Tokens({"some": [MODEL], "every": ["*"]}))
        yield StubServer(table, [plain.wrap(rpc) for rpc in table], [guarded.wrap(rpc) for rpc in table], key)
