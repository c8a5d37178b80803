"""Asks a server for more than it can do: how much of that is answered in time, and what memory it takes.

`python -m tests.chaos.overload` measures the capacity with a number of calls that are always in flight,
memory at 80 % of it, and then 200 % and 400 % of it: calls at random times with deadlines of 1 s and 10 s.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from serving.bundle import Description
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.benchmarks.cells import replace_table, verdict
from tests.chaos import victim
from tests.chaos.load import Outcome, Plan, applied
from tests.chaos.machine import machine
from tests.chaos.networks import write_slow
from tests.chaos.victim import MODEL, TOKEN, Victim, running, small_request

SECONDS = 60.0
TRANSPORTS = ("h2", "grpc")
SHARES, DEADLINES_S = (2, 4), (1.0, 10.0)
LEAST_GOODPUT = {2: 0.90, 4: 0.75}
MOST_LATE = 0.01
MOST_MEMORY = 2.0

_CALM_SHARE = 0.8
_IN_FLIGHT = 64
_CAPACITY_PART = 3  # the capacity is measured before and after each load, for this part of its time
_CLASSIFY = "/lenserve.v1.Classifier/Classify"
_WIDTH, _HEIGHT, _QUALITY = 1600, 1200, 85
_LAYERS = 160
_OK, _LATE = "OK", "DEADLINE_EXCEEDED"

_stderr = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Work:
    """What the server is asked for, again and again."""

    name: str
    method: str
    message: bytes
    write: Callable[[Path], Description]  # writes the files of the model


@dataclass(frozen=True, slots=True)
class _Capacity:
    """What a server does if calls are always in flight."""

    per_s: float  # answers
    work_s: float  # CPU of the busiest thread for each answer


@dataclass(frozen=True, slots=True)
class Overload:
    """The result of one load."""

    work: str
    transport: str
    share: float  # of the capacity
    deadline_s: float
    capacity_per_s: float  # mean of before and after the load: the machine's speed changes
    good_per_s: float
    refused: int
    late: int
    codes: dict[str, int]
    p99_ms: float  # of what was answered
    call_cpu_us: float  # of each call, answered or refused, in all threads but the one that does the work
    work_ratio: float  # CPU of that thread for each answer, to that at the capacity: caches that others empty
    memory: float  # peak, as a ratio to that at 80 % load
    client_busy: float

    @property
    def goodput(self) -> float:
        """Calls that were answered in time, as a share of the capacity."""
        return self.good_per_s / self.capacity_per_s

    @property
    def late_share(self) -> float:
        """Of the calls that were accepted."""
        return self.late / max(1, self.late + self.codes.get(_OK, 0))

    def misses(self) -> list[str]:
        """The musts that are not met, in words."""
        found = []
        if self.goodput < LEAST_GOODPUT[round(self.share)]:
            found.append(f"below {LEAST_GOODPUT[round(self.share)]:.0%}")
        if self.late_share > MOST_LATE:
            found.append(f"more than {MOST_LATE:.0%} late")
        if self.memory > MOST_MEMORY:
            found.append(f"more than {MOST_MEMORY:g} times the memory")
        other = {code: count for code, count in self.codes.items() if code not in _EXPECTED}
        if other:
            found.append("failed: " + ", ".join(f"{count} {code}" for code, count in other.items()))
        return found


_EXPECTED = frozenset({_OK, _LATE, "RESOURCE_EXHAUSTED"})


def photographs() -> Work:
    """JPEG files of 1600x1200 pixels for a small network: decoding is what takes the time."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 255, (30, 40, 3), np.uint8)  # (H, W, C)
    file = io.BytesIO()
    picture = Image.fromarray(blocks).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    picture.save(file, "JPEG", quality=_QUALITY)
    request = pb.ClassifyRequest(model=MODEL, images=[pb.Image(encoded=file.getvalue())])
    return Work("photographs", _CLASSIFY, request.SerializeToString(), victim.write_small)


def tensors() -> Work:
    """Small tensors for a network of some milliseconds: running it is what takes the time."""
    return Work("tensors", victim.METHOD, small_request(), partial(write_slow, layers=_LAYERS))


def measure(
    work: Work,
    folder: Path,
    transport: str,
    *,
    seconds: float,
    loads: Sequence[tuple[int, float]],
) -> list[Overload]:
    """Overload one server again and again.

    Args:
        work: what it is asked for.
        folder: of its repository and its log; empty.
        transport: of the server.
        seconds: of each load.
        loads: share of the capacity, and deadline in seconds.
    """
    results = []
    with running(folder, ["--transport", transport], write=work.write) as server:
        part_s = seconds / _CAPACITY_PART
        _capacity(server, work, part_s)  # it warms up
        before = _capacity(server, work, part_s)
        server.reset_peak()
        applied(_plan(server, work, seconds=seconds, calls_per_s=_CALM_SHARE * before.per_s))
        calm_mib = server.peak_mib()
        for share, deadline_s in loads:
            server.reset_peak()
            began_s = server.cpu_of_threads_s()
            outcome = applied(
                _plan(server, work, seconds=seconds, calls_per_s=share * before.per_s, deadline_s=deadline_s)
            )
            *beside_s, work_s = _used_s(began_s, server.cpu_of_threads_s())
            peak_mib = server.peak_mib()
            after = _capacity(server, work, part_s)
            codes = outcome.codes()
            results.append(
                Overload(
                    work=work.name,
                    transport=transport,
                    share=share,
                    deadline_s=deadline_s,
                    capacity_per_s=(before.per_s + after.per_s) / 2,
                    good_per_s=outcome.count(_OK) / _span_s(outcome),
                    refused=codes.get("RESOURCE_EXHAUSTED", 0),
                    late=codes.get(_LATE, 0),
                    codes=codes,
                    p99_ms=outcome.p99_ms(),
                    call_cpu_us=1e6 * sum(beside_s) / len(outcome.calls),
                    work_ratio=work_s / max(1, codes.get(_OK, 0)) * 2 / (before.work_s + after.work_s),
                    memory=peak_mib / calm_mib,
                    client_busy=outcome.busy,
                )
            )
            before = after
            _stderr.print(_line(results[-1]))
    return results


def _plan(
    server: Victim,
    work: Work,
    *,
    seconds: float,
    calls_per_s: float = 0.0,
    in_flight: int = 0,
    deadline_s: float = 60.0,
) -> Plan:
    return Plan(
        server.port,
        work.method,
        work.message.hex(),
        seconds,
        calls_per_s=calls_per_s,
        in_flight=in_flight,
        deadline_s=deadline_s,
        metadata=(("authorization", f"Bearer {TOKEN}"),),
    )


def _capacity(server: Victim, work: Work, seconds: float) -> _Capacity:
    """Keep calls in flight. Those that are refused are not answers."""
    began_s = server.cpu_of_threads_s()
    outcome = applied(_plan(server, work, seconds=seconds, in_flight=_IN_FLIGHT))
    work_s = _used_s(began_s, server.cpu_of_threads_s())[-1]
    answers = outcome.count(_OK)
    return _Capacity(answers / _span_s(outcome), work_s / max(1, answers))


def _used_s(before_s: Mapping[str, float], after_s: Mapping[str, float]) -> list[float]:
    """CPU time of each thread; the last one decodes photographs or runs the network."""
    return sorted(each_s - before_s.get(thread, 0.0) for thread, each_s in after_s.items())


def _span_s(outcome: Outcome) -> float:
    begin_s = min(call.due_s for call in outcome.calls)
    return max(call.due_s + call.latency_s for call in outcome.calls) - begin_s


def _line(result: Overload) -> str:
    return (
        f"{result.work:12} {result.transport:5} {result.share:.0%} of {result.capacity_per_s:6.0f}/s, "
        f"{result.deadline_s:g} s: goodput {result.goodput:.3f}  late {result.late_share:.4f}  "
        f"p99 {result.p99_ms:.0f} ms  {result.call_cpu_us:.0f} us of CPU a call  "
        f"work {result.work_ratio:.2f}  memory {result.memory:.2f}  client {result.client_busy:.0%}  "
        f"{result.codes}  {'; '.join(result.misses()) or 'met'}"
    )


_HEAD = (
    "| what | transport | capacity, calls/s | asked for | deadline, s | answered in time, of the capacity | "
    "refused | late, of the accepted | p99, ms | CPU of a call, us | work of an answer | "
    "memory, of that at 80 % | |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table(results: Sequence[Overload]) -> str:
    """One row for each load, as Markdown."""
    rows = [
        f"| {each.work} | `{each.transport}` | {each.capacity_per_s:,.0f} | {each.share:.0%} | "
        f"{each.deadline_s:g} | {each.goodput:.1%} | {each.refused:,} | {each.late_share:.2%} | "
        f"{each.p99_ms:,.0f} | {each.call_cpu_us:,.0f} | {each.work_ratio:.2f} | {each.memory:.2f} | "
        f"{verdict(each.misses())} |"
        for each in results
    ]
    return "\n".join([_HEAD, *rows])


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    parser.add_argument("--transport", choices=TRANSPORTS, nargs="+", default=TRANSPORTS)
    parser.add_argument("--work", choices=("photographs", "tensors"), nargs="+")
    parser.add_argument(
        "--share", type=int, choices=SHARES, nargs="+", default=SHARES, help="of the capacity"
    )
    parser.add_argument("--deadline-s", type=float, choices=DEADLINES_S, nargs="+", default=DEADLINES_S)
    parser.add_argument("--json", type=Path, help="a file that keeps every figure")
    parser.add_argument("--write", type=Path, help="a Markdown file whose table of overload is replaced")
    options = parser.parse_args()
    loads = [(share, deadline_s) for share in options.share for deadline_s in options.deadline_s]
    results = []
    for transport in options.transport:
        for work in (photographs(), tensors()):
            if not options.work or work.name in options.work:
                with tempfile.TemporaryDirectory() as folder:
                    results += measure(work, Path(folder), transport, seconds=options.seconds, loads=loads)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in results], indent=1))
    command = f"python -m tests.chaos.overload --seconds {options.seconds:g}"
    text = f"{table(results)}\n\n`{command}`. {machine()}.\n"
    print(text)
    if options.write:
        replace_table(options.write, text, name="overload")


if __name__ == "__main__":
    main()
