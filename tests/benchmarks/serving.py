"""`make bench`: what a request costs the server, beside ONNX Runtime alone.

One server process on core 0, one client process on core 1, LeNet-5 from `lenserve-train run lenet5-digits`.
Every row is measured REPETITIONS times for WINDOW_S seconds, in shuffled order; medians and the whole spread
are printed. Compare rows of one run with each other: between runs and machines the speed of a core differs.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serving.bundle import Bundle, Repository
from serving.client import AsyncClient
from serving.pb.inference import grpc_service_pb2 as pb

MODEL = "lenet5-digits"
WINDOW_S = 2.0
REPETITIONS = 5
CONCURRENCIES = (1, 16)

Request = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Window:
    """What one window of one row measured."""

    requests_per_s: float
    server_cpu_ms: float  # per request
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path(".demo/repository"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    repository = Repository(options.repository)
    if MODEL not in repository.models():
        raise SystemExit(f"{options.repository} holds no {MODEL}: run `make demo` first")
    bundle = repository.read(MODEL, repository.versions(MODEL)[-1])
    server = start_server(options.repository)
    try:
        rows = asyncio.run(measure(bundle, server))
    finally:
        server.terminate()
        server.wait()
    onnx_rows = {f"ONNX Runtime alone, batch {size}": onnx_images_per_s(bundle, size) for size in (1, 32)}
    if options.json:
        print(
            json.dumps(
                {"rows": {name: [asdict(each) for each in row] for name, row in rows.items()}} | onnx_rows
            )
        )
    else:
        show(rows, onnx_rows)


async def measure(bundle: Bundle, server: subprocess.Popen[str]) -> dict[str, list[Window]]:
    """Run every row REPETITIONS times against one server."""
    address = wait_until_ready(server)
    async with AsyncClient(address, attempts=1) as client, grpc.aio.insecure_channel(address) as channel:
        return await measure_rows(build_requests(bundle, client, channel), server.pid)


def start_server(repository: Path) -> subprocess.Popen[str]:
    """A server on the first core; this process moves to the last."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    command = [sys.executable, "-m", "serving.cli", "serve", "--repository", str(repository), "--log-json"]
    server = subprocess.Popen(
        [*command, "--grpc-port", "0", "--http-port", "0"], stderr=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(0, {cores[-1]})
    return server


async def measure_rows(requests: dict[str, Request], pid: int) -> dict[str, list[Window]]:
    """Every request at every concurrency, shuffled."""
    names = [
        (f"{name}, {count} in flight", request, count)
        for name, request in requests.items()
        for count in CONCURRENCIES
    ]
    rows: dict[str, list[Window]] = {name: [] for name, _, _ in names}
    plan = names * REPETITIONS
    random.Random(0).shuffle(plan)  # noqa: S311 - an order, no secret
    for name, request, concurrency in track(plan, "measuring", console=Console(stderr=True)):
        rows[name].append(await measure_window(request, concurrency, pid))
    return rows


async def measure_window(request: Request, concurrency: int, pid: int) -> Window:
    """Closed loop: `concurrency` callers, each asking again as soon as it is answered."""
    latencies: list[float] = []
    for _ in range(20):
        await request()
    end_s = time.perf_counter() + WINDOW_S

    async def ask() -> None:
        while (started_s := time.perf_counter()) < end_s:
            await request()
            latencies.append(time.perf_counter() - started_s)

    cpu_s, started_s = cpu_time_s(pid), time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(concurrency)))
    duration_s, cpu_s = time.perf_counter() - started_s, cpu_time_s(pid) - cpu_s
    p50_ms, p99_ms = np.percentile(latencies, [50, 99]) * 1000
    return Window(len(latencies) / duration_s, cpu_s * 1000 / len(latencies), float(p50_ms), float(p99_ms))


def build_requests(bundle: Bundle, client: AsyncClient, channel: grpc.aio.Channel) -> dict[str, Request]:
    """One golden image, as a PNG through Classify and as a tensor through ModelInfer; answers are checked."""
    golden = bundle.golden()
    buffer = io.BytesIO()
    Image.fromarray(golden.images[0, :, :, 0]).save(buffer, "PNG")
    png = buffer.getvalue()
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelInferResponse.FromString,
    )
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=golden.images[:1].shape
    )
    message = pb.ModelInferRequest(
        model_name=MODEL, inputs=[tensor], raw_input_contents=[golden.images[0].tobytes()]
    )
    expected = golden.probabilities[0]

    async def classify() -> None:
        prediction = await client.classify(png, model=MODEL, top_k=1)
        if prediction.top.index != expected.argmax():
            raise SystemExit("Classify gave another label than the bundle's golden example")

    async def model_infer() -> None:
        answer = await infer(message)
        if not np.allclose(np.frombuffer(answer.raw_output_contents[0], "<f4"), expected, atol=1e-4):
            raise SystemExit("ModelInfer gave other probabilities than the bundle's golden example")

    return {"Classify, 28x28 PNG": classify, "ModelInfer, 28x28 uint8": model_infer}


def onnx_images_per_s(bundle: Bundle, size: int) -> list[float]:
    """ONNX Runtime on one thread, without any server."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.model_file, options, providers=["CPUExecutionProvider"])
    images = np.resize(bundle.golden().images, (size, *bundle.golden().images.shape[1:]))
    rates = []
    for _ in range(REPETITIONS):
        count, started_s = 0, time.perf_counter()
        while time.perf_counter() - started_s < WINDOW_S / 4:
            session.run(None, {"image": images})
            count += size
        rates.append(count / (time.perf_counter() - started_s))
    return rates


def wait_until_ready(server: subprocess.Popen[str]) -> str:
    """The gRPC address, once the server is ready."""
    address = ""
    for line in server.stderr or ():
        event = json.loads(line)
        address = event.get("grpc", address)
        if event["event"] == "ready":
            return address
    raise SystemExit("the server did not become ready")


def cpu_time_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(rows: dict[str, list[Window]], onnx_rows: dict[str, list[float]]) -> None:
    """Medians, with the spread of all repetitions in brackets."""
    table = Table("row", "requests/s", "server CPU-ms/request", "p50 ms", "p99 ms", box=None)
    for name, windows in rows.items():
        columns = ("requests_per_s", "server_cpu_ms", "p50_ms", "p99_ms")
        table.add_row(name, *(spread([getattr(window, column) for window in windows]) for column in columns))
    for name, rates in onnx_rows.items():
        table.add_row(name, spread(rates), spread([1000 / rate for rate in rates]), "", "")
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{REPETITIONS} windows of {WINDOW_S} s a row; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, ORT {onnxruntime.__version__}, "
        f"grpcio {grpc.__version__}"
    )


def spread(values: list[float]) -> str:
    """Median [lowest .. highest]."""
    return f"{statistics.median(values):.3g} [{min(values):.3g} .. {max(values):.3g}]"


if __name__ == "__main__":
    main()
