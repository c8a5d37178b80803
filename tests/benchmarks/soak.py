"""Mixed traffic for minutes, as much as two hours bring: does anything grow in the server?

Good and bad requests of every kind, streams, cancellations, deadlines, connections that come and go, and new
versions in the middle of it. Memory, threads, file descriptors and asyncio tasks are sampled all along, and
compared between the first part and the last, and once more when all is quiet.
"""

import argparse
import asyncio
import io
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from serving.bundle import Bundle, Repository
from serving.client.client import AsyncClient
from serving.errors import LenserveError
from serving.pb.inference import grpc_service_pb2 as oip
from tests.benchmarks.calls import INFER, infer_message
from tests.benchmarks.networks import lenet
from tests.benchmarks.processes import CLIENT_CORES, Process, pinned
from tests.benchmarks.servers import start_lenserve

SAMPLE_S = 1.0
RELOAD_S = 20.0
KEPT_VERSIONS = 3
QUIET_S = 15.0  # for connections to close and what was cancelled to end
MOST_GROWTH_MIB = 8.0
CLIENTS = 8

Deed = Callable[["Visitor"], Awaitable[object]]


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    second: float
    resident_mib: float
    threads: int
    descriptors: int
    tasks: int


class Visitor:
    """One client with connections of its own, which it renews now and then."""

    def __init__(self, address: str, bundle: Bundle, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - what to do next, no secret
        self.model = bundle.model
        self.pixels = bundle.golden().images
        self.client = AsyncClient(address, attempts=1, timeout_s=5)
        self.channel = grpc.aio.insecure_channel(address)
        self._bundle = bundle

    async def close(self) -> None:
        """Close both connections."""
        await self.client.close()
        await self.channel.close()

    def image(self) -> np.ndarray:
        """(28, 28, 1) uint8, a real digit."""
        return self.pixels[self.random.randrange(len(self.pixels))]

    def infer(self, count: int = 1, **options: object) -> "grpc.aio.UnaryUnaryCall":
        """A ModelInfer that runs."""
        method = self.channel.unary_unary(
            INFER, oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
        )
        return method(infer_message(self._bundle, np.repeat(self.image()[None], count, axis=0)), **options)

    async def stream(self, count: int) -> None:
        """A ModelStreamInfer of several requests."""
        method = self.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            oip.ModelInferRequest.SerializeToString,
            oip.ModelStreamInferResponse.FromString,
        )

        async def requests() -> AsyncIterator[oip.ModelInferRequest]:
            for _ in range(count):
                yield infer_message(self._bundle, self.image()[None])

        async for _ in method(requests(), timeout=5):
            pass


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).resize((200, 150)).save(buffer, "PNG")
    return buffer.getvalue()


async def _cancelled(visitor: Visitor) -> None:
    call = visitor.infer(8)
    await asyncio.sleep(visitor.random.random() * 0.002)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


DEEDS: dict[str, Deed] = {
    "one tensor": lambda visitor: visitor.infer(),
    "twenty tensors": lambda visitor: visitor.infer(20),
    "a picture": lambda visitor: visitor.client.classify(_png(visitor.image()), model=visitor.model),
    "some good, one bad": lambda visitor: visitor.client.classify_all(
        [visitor.image(), b"no image", _png(visitor.image())], model=visitor.model
    ),
    "no image": lambda visitor: visitor.client.classify(b"no image", model=visitor.model),
    "no such model": lambda visitor: visitor.client.classify(visitor.image(), model="nobody"),
    "hardly any time": lambda visitor: visitor.infer(4, timeout=0.001),
    "changes its mind": _cancelled,
    "a stream": lambda visitor: visitor.stream(30),
}


# Clients give up less often than not.
WEIGHTS = [1 if name in ("hardly any time", "changes its mind") else 8 for name in DEEDS]


async def visit(address: str, bundle: Bundle, seed: int, until_s: float, ends: Counter[str]) -> None:
    """Do one deed after the other."""
    visitor = Visitor(address, bundle, seed)
    for number in itertools.count(1):
        if time.monotonic() > until_s:
            break
        (name,) = visitor.random.choices(list(DEEDS), WEIGHTS)
        try:
            await DEEDS[name](visitor)
            ends[f"{name}: OK"] += 1
        except grpc.aio.AioRpcError as error:
            ends[f"{name}: {error.code().name}"] += 1
        except asyncio.CancelledError:
            ends[f"{name}: CANCELLED"] += 1
        except LenserveError as error:
            ends[f"{name}: {str(error).partition(':')[0]}"] += 1
        if number % 500 == 0:
            await visitor.close()
            visitor = Visitor(address, bundle, seed + number)
    await visitor.close()


async def refresh(folder: Path, until_s: float) -> None:
    """A new version every RELOAD_S seconds; the oldest goes."""
    for number in itertools.count(2):
        await asyncio.sleep(min(RELOAD_S, max(0.0, until_s - time.monotonic())))
        if time.monotonic() >= until_s:
            return
        await asyncio.to_thread(_publish_again, folder, number)


def _publish_again(folder: Path, number: int) -> None:
    temporary = folder / f".{number}"
    shutil.copytree(folder / str(number - 1), temporary)
    manifest = json.loads((temporary / "manifest.json").read_text())
    (temporary / "manifest.json").write_text(json.dumps({**manifest, "version": number}))
    temporary.rename(folder / str(number))
    shutil.rmtree(folder / str(number - KEPT_VERSIONS), ignore_errors=True)


def sample(process: Process, metrics_url: str, started_s: float) -> Sample:
    """Look at the server."""
    folder = Path(f"/proc/{process.pid}")
    with urllib.request.urlopen(metrics_url, timeout=10) as response:  # noqa: S310 - our own server
        lines = response.read().decode().splitlines()
    tasks = next(line.split()[-1] for line in lines if line.startswith("lenserve_event_loop_tasks "))
    return Sample(
        round(time.monotonic() - started_s, 1),
        round(process.resident_mib(), 1),
        len(list((folder / "task").iterdir())),
        len(list((folder / "fd").iterdir())),
        int(float(tasks)),
    )


async def soak(seconds: float) -> tuple[list[Sample], Sample, Counter[str]]:
    """Samples under load, one when all is quiet, and how the deeds ended."""
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = lenet()  # what visitors know; the copies that are served come and go
        versions = Path(folder) / bundle.model
        shutil.copytree(bundle.folder, versions / "1")
        server = start_lenserve(Repository(Path(folder)).read(bundle.model, 1))
        metrics_url = f"http://127.0.0.1:{server.http_port}/metrics"
        try:
            started_s = time.monotonic()
            until_s = started_s + seconds
            address = f"127.0.0.1:{server.port}"
            work = [
                *(visit(address, bundle, seed, until_s, ends) for seed in range(CLIENTS)),
                refresh(versions, until_s),
            ]
            load = asyncio.gather(*work)
            samples = []
            while not load.done():
                await asyncio.wait([load], timeout=SAMPLE_S)
                samples.append(await asyncio.to_thread(sample, server.process, metrics_url, started_s))
            await load
            await asyncio.sleep(QUIET_S)
            return samples, sample(server.process, metrics_url, started_s), ends
        finally:
            server.process.stop()


def main() -> int:
    """Print what was done and what grew; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
    with pinned(CLIENT_CORES):
        samples, quiet, ends = asyncio.run(soak(seconds))
    for name, count in sorted(ends.items()):
        print(f"{count:>9,}  {name}")
    third = len(samples) // 3
    early, late = samples[third : 2 * third], samples[-third:]
    grown = False
    print("| | second third | last third | quiet |\n| --- | --- | --- | --- |")
    for field, most in (
        ("resident_mib", MOST_GROWTH_MIB),
        ("threads", 0.0),
        ("descriptors", 2.0),
        ("tasks", 2.0),
    ):
        before, after = (statistics.median(getattr(each, field) for each in part) for part in (early, late))
        grown = grown or after > before + most
        print(f"| {field} | {before:g} | {after:g} | {getattr(quiet, field):g} |")
    print(
        f"{sum(ends.values()):,} requests in {seconds:g} s; {'something grew' if grown else 'nothing grew'}"
    )
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
