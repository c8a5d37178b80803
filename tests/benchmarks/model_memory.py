"""What models cost a server besides its own memory: `make bench-memory`.

Memory after loading, and some seconds after requests with the largest batch; the time until the server is
ready; the time and size of a scrape. For one SqueezeNet, and for ten and a thousand LeNet-5.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np

from serving.bundle import Bundle
from tests.benchmarks.calls import INFER, infer_message
from tests.benchmarks.networks import backbone_bundle, lenet
from tests.benchmarks.processes import CORES
from tests.benchmarks.servers import Server, start_lenserve

_LARGEST_BATCH = 32
_BATCHES = 20  # requests with the largest batch
_PAUSE_S = 10.0  # after them
_REPEATS = 3  # servers of each kind

CASES: dict[str, tuple[Callable[[], Bundle], int]] = {
    "nothing": (lenet, 0),
    "1 SqueezeNet 1.1": (lambda: backbone_bundle("squeezenet1_1"), 1),
    "10 LeNet-5": (lenet, 10),
    "1,000 LeNet-5": (lenet, 1000),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """One server."""

    loaded_mib: float
    used_mib: float  # some seconds after requests with the largest batch
    ready_s: float
    scrape_s: float
    scrape_mb: float


def main() -> None:
    """Measure every case, and print a table; memory is that above a server with an empty repository."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.model_memory", description=__doc__)
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="servers of each kind")
    parser.add_argument("--json", type=Path, help="a file that keeps every figure")
    options = parser.parse_args()
    costs = {
        name: [measure(make(), copies) for _ in range(options.repeats)]
        for name, (make, copies) in CASES.items()
    }
    if options.json:
        figures = {name: [asdict(each) for each in found] for name, found in costs.items()}
        options.json.write_text(json.dumps(figures, indent=1))
    print(table(costs))


def measure(bundle: Bundle, copies: int) -> Cost:
    """Start a server on so many copies of a bundle, use one of them, and stop it."""
    with repository(bundle, copies) as copied:
        started_s = time.perf_counter()
        server = start_lenserve(copied, cores=CORES)
        try:
            ready_s = time.perf_counter() - started_s
            loaded_mib = server.process.resident_mib()
            started_s = time.perf_counter()
            scrape = urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics").read()
            scrape_s = time.perf_counter() - started_s
            if copies:
                use(server, copied)
            return Cost(loaded_mib, server.process.resident_mib(), ready_s, scrape_s, len(scrape) / 1e6)
        finally:
            server.process.stop()


@contextmanager
def repository(bundle: Bundle, copies: int) -> Iterator[Bundle]:
    """A repository of copies, as links to the same files. Yields the first."""
    with tempfile.TemporaryDirectory(dir=bundle.folder.parents[2]) as root:
        for number in range(copies):
            shutil.copytree(bundle.folder, Path(root) / f"m{number}" / "1", copy_function=os.link)
        folder = Path(root) / "m0" / "1"
        yield Bundle("m0", 1, folder, bundle.manifest, bundle.digest)


def use(server: Server, bundle: Bundle) -> None:
    """Send requests with the largest batch, then wait."""
    batch = np.resize(bundle.golden().images, (_LARGEST_BATCH, *bundle.manifest.geometry.shape))
    message = infer_message(bundle, batch).SerializeToString()
    with grpc.insecure_channel(
        f"127.0.0.1:{server.port}", [("grpc.max_receive_message_length", -1)]
    ) as channel:
        for _ in range(_BATCHES):
            channel.unary_unary(INFER)(message, timeout=60)
    time.sleep(_PAUSE_S)


def table(costs: dict[str, list[Cost]]) -> str:
    """Medians, with the lowest and the highest."""
    (empty, *_) = costs.values()
    base_mib = statistics.median(each.loaded_mib for each in empty)
    lines = [
        "| models | memory after load, MiB | after use, MiB | ready, s | scrape, s | scrape, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in costs.items():
        cells = [
            [each.loaded_mib - base_mib for each in found],
            [each.used_mib - base_mib for each in found],
            [each.ready_s for each in found],
            [each.scrape_s for each in found],
            [each.scrape_mb for each in found],
        ]
        described = [
            f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]" for values in cells
        ]
        lines.append(f"| {name} | {' | '.join(described)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
