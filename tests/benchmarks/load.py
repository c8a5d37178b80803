"""Load by h2load: one fixed request, a fixed number in flight, for a while. Knows no server.

h2load costs the client's core 10 µs a request, so that it is never the client that is measured.
"""

import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.benchmarks.processes import CLIENT_CORES, pinned

_FOLDER = Path(".peers/bench/h2load/usr").resolve()
_ENVIRONMENT = {"LD_LIBRARY_PATH": str(_FOLDER / "lib" / "x86_64-linux-gnu")}
GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}
_TIMEOUT_S = 120
_PREFIX_BYTES = 5  # gRPC over HTTP/2: a flag and the length before each message


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, again and again."""

    path: str
    body: bytes
    answer_bytes: int = 0  # length of the answer's body: that of an error is shorter
    headers: Mapping[str, str] = field(default_factory=lambda: GRPC_HEADERS)
    http1: bool = False
    messages: int = 1  # equal ones in the body, each an image: more than one is a stream


@dataclass(frozen=True, slots=True)
class Load:
    """What the client saw."""

    requests_per_s: float
    client_cores: float  # CPU time by the clock
    p50_ms: float
    p99_ms: float


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it, not compressed."""
    return b"\0" + len(message).to_bytes(_PREFIX_BYTES - 1, "big") + message


def run_load(
    request: Request,
    port: int,
    *,
    connections: int,
    streams: int,
    requests: int,
    cores: Sequence[int] = CLIENT_CORES,
) -> Load:
    """Keep connections * streams requests in flight until so many are answered.

    A number and not a time, because requests that are cut off at the end would have cost the server and count
    for nothing.

    Raises:
        SystemExit: a request failed, or answers are shorter than a good one.
    """
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(request.body)
        command = [str(_FOLDER / "bin" / "h2load"), "--data", str(body), "--log-file", str(log)]
        command += ["--clients", str(connections), "--max-concurrent-streams", str(streams)]
        command += ["--requests", str(requests), *(["--h1"] if request.http1 else [])]
        command += [f"--header={name}: {value}" for name, value in request.headers.items()]
        cpu_s = _children_cpu_s()
        with pinned(cores):
            done = subprocess.run(
                [*command, f"http://127.0.0.1:{port}{request.path}"],
                capture_output=True,
                text=True,
                env={**os.environ, **_ENVIRONMENT},
                timeout=_TIMEOUT_S,
                check=False,
            )
        if done.returncode:
            raise SystemExit(f"h2load ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        latencies_ms = np.loadtxt(log, usecols=2, ndmin=1) / 1000  # (requests,)
    requests_per_s = _checked_rate(done.stdout, request, requests)
    p50_ms, p99_ms = np.percentile(latencies_ms, [50, 99])
    client_cores = (_children_cpu_s() - cpu_s) * requests_per_s / requests
    return Load(requests_per_s, client_cores, float(p50_ms), float(p99_ms))


def _checked_rate(report: str, request: Request, requests: int) -> float:
    rate = re.search(r"finished in \S+, ([\d.]+) req/s", report)
    succeeded = re.search(r"(\d+) succeeded,", report)
    data = re.search(r"\((\d+)\) data", report)
    if not rate or not succeeded or not data:
        raise SystemExit(f"h2load did not report:\n{report}")
    # Every error of gRPC has HTTP status 200, and no message: that is told by the bytes.
    if int(succeeded[1]) != requests or int(data[1]) < requests * request.answer_bytes:
        raise SystemExit(f"not every request to {request.path} was answered well:\n{report}")
    return float(rate[1])


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
