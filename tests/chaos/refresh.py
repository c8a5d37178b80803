"""Changes what a server serves while it is under load: is every call answered, and rightly, and how late?

`python -m tests.chaos.refresh` publishes 50 versions and moves an alias 50 times, at half of the capacity,
over both transports, with one worker and with two. Then it publishes 200 versions, and compares memory and
CPU afterwards with those after the first 50.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import grpc
import numpy as np
from rich.console import Console

from serving.bundle import Description, Repository
from serving.pb.inference import grpc_service_pb2 as oip
from tests.benchmarks.cells import replace_table, verdict
from tests.chaos.load import Load, Outcome, Plan, applied, p99_ms
from tests.chaos.machine import machine
from tests.chaos.networks import write_slow
from tests.chaos.victim import METHOD, MODEL, TOKEN, Victim, running, small_request
from tests.colours import LABELS, write_colours

TRANSPORTS, WORKERS = ("h2", "grpc"), (1, 2)
CHANGES, PUBLICATIONS, FIRST_PUBLICATIONS = 50, 200, 50
MOST_P99_RATIO, MOST_GROWTH = 2.5, 1.05
POLL_S = 1.0  # the default of --poll-interval-s
# From a change until all connections are answered by the new version: a version is loaded; an alias goes to a
# version that is still in memory.
MOST_SERVED_S = {"version": POLL_S + 0.2, "alias": 0.3}

_LAYERS, _WIDTH = 24, 512  # about half a millisecond for an image, and a load of about 0.1 s
_CAPACITY_S, _IN_FLIGHT, _SHARE = 3.0, 64, 0.5
_CALM_S, _PAUSE_S = 5.0, 0.3
_CPU_S, _SETTLE_S = 5.0, 2.0
_PROBES, _POLL_S, _SERVED_S = 4, 0.02, 60.0  # more would be a load of their own
_POLL_OPTIONS = ("--poll-interval-s", "0.1")
_METADATA = (("authorization", f"Bearer {TOKEN}"),)

_stderr = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Swaps:
    """Many changes under load."""

    change: str
    transport: str
    workers: int
    changes: int
    calls: int
    failed: dict[str, int]  # code -> calls
    wrong: int  # answers that are not those of the version that they name
    calm_p99_ms: float
    p99_ms: float  # of calls that came between a change and the moment when the last worker served it
    seconds: float  # of such a change, at the median
    slowest_s: float  # of all changes

    def misses(self) -> list[str]:
        """The musts that are not met, in words."""
        found = [f"{count} {code}" for code, count in self.failed.items()]
        if self.wrong:
            found.append(f"{self.wrong} wrong")
        if self.slowest_s > MOST_SERVED_S[self.change]:
            found.append(f"served after more than {MOST_SERVED_S[self.change]:g} s")
        if self.p99_ms > MOST_P99_RATIO * self.calm_p99_ms:
            found.append(f"p99 above {MOST_P99_RATIO:g} times")
        return found


@dataclass(frozen=True, slots=True)
class Growth:
    """What publications leave behind."""

    publications: int
    first: int
    first_mib: float
    mib: float
    first_cpu_us: float  # of one call
    cpu_us: float

    def misses(self) -> list[str]:
        """The musts that are not met, in words."""
        found = []
        if self.mib > MOST_GROWTH * self.first_mib:
            found.append(f"memory above {MOST_GROWTH:g} times")
        if self.cpu_us > MOST_GROWTH * self.first_cpu_us:
            found.append(f"CPU above {MOST_GROWTH:g} times")
        return found


class Probes:
    """Connections that see which version answers. Several, so that each worker has some."""

    def __init__(self, server: Victim) -> None:
        self._stack = ExitStack()
        options = (("grpc.use_local_subchannel_pool", 1),)
        address = f"127.0.0.1:{server.port}"
        self._infer = [
            self._stack.enter_context(grpc.insecure_channel(address, options)).unary_unary(METHOD)
            for _ in range(_PROBES)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_for(self, version: int) -> None:
        """Wait until every connection is answered by a version."""
        end_s = time.monotonic() + _SERVED_S
        waiting = self._infer
        while waiting:  # all at once: one after the other, the waits for their answers would add up
            calls = [(infer, infer.future(small_request(), metadata=_METADATA)) for infer in waiting]
            waiting = [infer for infer, call in calls if _version_of(call) != version]
            if waiting and time.monotonic() > end_s:
                raise SystemExit(f"version {version} was not served after {_SERVED_S:g} s")
            time.sleep(_POLL_S if waiting else 0)


def _version_of(call: grpc.Future) -> int:
    """The version that answers; 0 if the call is refused."""
    try:
        answer = call.result()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return 0
        raise
    return _version_and_label(answer)[0]


def _version_and_label(answer: bytes) -> tuple[int, str]:
    """The version that an answer names, and its best label."""
    message = oip.ModelInferResponse.FromString(answer)
    probabilities = np.frombuffer(message.raw_output_contents[0], "<f4")  # (K,)
    return int(message.model_version), LABELS[int(probabilities.argmax())]


def _right_label(version: int) -> str:
    """The label that a version gives a red image: versions rotate the labels."""
    return LABELS[version % len(LABELS)]


def _write(write: Callable[..., Description], version: int) -> Callable[[Path], Description]:
    return partial(write, rotate=version % len(LABELS))


def swaps(
    folder: Path,
    transport: str,
    workers: int,
    *,
    change: str,
    changes: int = CHANGES,
    calm_s: float = _CALM_S,
    layers: int = _LAYERS,
    calls_per_s: float = 0.0,
) -> Swaps:
    """Change what is served, again and again, under a load of half of the capacity.

    Args:
        folder: of the repository and the log; empty.
        transport: of the server.
        workers: of the server.
        change: version or alias.
        changes: how many.
        calm_s: seconds under the same load before the first change, and of measuring the capacity.
        layers: of the network.
        calls_per_s: the load; 0: half of the capacity.
    """
    write = partial(write_slow, layers=layers, width=_WIDTH)
    options = ["--transport", transport, "--workers", str(workers)]
    with running(folder, options, write=_write(write, 1)) as server, Probes(server) as probes:
        repository = Repository(folder / "repository")
        if change == "alias":
            repository.publish(MODEL, _write(write, 2))
            for version in (2, 1):  # then both are in memory
                repository.set_alias(MODEL, "stable", version)
                probes.wait_for(version)
        if not calls_per_s:
            capacity = applied(_plan(server, calm_s, in_flight=_IN_FLIGHT))
            calls_per_s = _SHARE * capacity.count("OK") / calm_s
        load = Load(_plan(server, math.inf, calls_per_s=calls_per_s))
        time.sleep(calm_s)
        windows = []
        for number in range(2, changes + 2):
            begin_s = time.monotonic()
            if change == "alias":
                version = 1 + (number + 1) % 2
                repository.set_alias(MODEL, "stable", version)
            else:
                version = repository.publish(MODEL, _write(write, number)).version
            probes.wait_for(version)
            windows.append((begin_s, time.monotonic()))
            time.sleep(_PAUSE_S)
        outcome = load.outcome()
    return _swaps(outcome, windows, change=change, transport=transport, workers=workers)


def _swaps(
    outcome: Outcome, windows: Sequence[tuple[float, float]], *, change: str, transport: str, workers: int
) -> Swaps:
    are_right = [
        label == _right_label(version) for version, label in map(_version_and_label, outcome.answers)
    ]
    calm = [call for call in outcome.calls if call.due_s < windows[0][0]]
    meanwhile = [call for call in outcome.calls if any(begin <= call.due_s < end for begin, end in windows)]
    return Swaps(
        change=change,
        transport=transport,
        workers=workers,
        changes=len(windows),
        calls=len(outcome.calls),
        failed={code: count for code, count in outcome.codes().items() if code != "OK"},
        wrong=sum(call.answer >= 0 and not are_right[call.answer] for call in outcome.calls),
        calm_p99_ms=p99_ms(calm),
        p99_ms=p99_ms(meanwhile),
        seconds=float(np.median([end - begin for begin, end in windows])),
        slowest_s=max(end - begin for begin, end in windows),
    )


def growth(
    folder: Path, *, publications: int = PUBLICATIONS, first: int = FIRST_PUBLICATIONS, cpu_s: float = _CPU_S
) -> Growth:
    """Publish many versions, and compare memory and CPU with those after the first ones."""
    with running(folder, _POLL_OPTIONS, write=_write(_write_small, 1)) as server, Probes(server) as probes:
        repository = Repository(folder / "repository")
        figures = []
        for number in range(2, publications + 2):
            repository.publish(MODEL, _write(_write_small, number))
            probes.wait_for(number)
            if number - 1 in {first, publications}:
                used_s = server.cpu_s()
                outcome = applied(_plan(server, cpu_s, in_flight=_IN_FLIGHT))
                cpu_us = 1e6 * (server.cpu_s() - used_s) / outcome.count("OK")
                time.sleep(_SETTLE_S)  # memory of the load returns to the system
                figures.append((server.resident_mib(), cpu_us))
    (first_mib, first_cpu_us), (mib, cpu_us) = figures
    return Growth(publications, first, first_mib, mib, first_cpu_us, cpu_us)


def _write_small(folder: Path, *, rotate: int) -> Description:
    return write_colours(folder, rotate=rotate, lie=False)


def _plan(server: Victim, seconds: float, *, calls_per_s: float = 0.0, in_flight: int = 0) -> Plan:
    return Plan(
        server.port,
        METHOD,
        small_request().hex(),
        seconds,
        calls_per_s=calls_per_s,
        in_flight=in_flight,
        metadata=_METADATA,
    )


_HEAD = (
    "| what changes | transport | workers | changes | calls | failed | wrong | p99 before, ms | "
    "p99 meanwhile, ms | seconds until served | at most | |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
_GROWTH_HEAD = (
    "| publications | RSS after the first, MiB | after all | CPU of a call after the first, us | after all | "
    "|\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def table(results: Sequence[Swaps]) -> str:
    """One row for each kind of change, as Markdown."""
    return "\n".join([_HEAD, *map(_row, results)])


def _row(each: Swaps) -> str:
    return (
        f"| {each.change} | `{each.transport}` | {each.workers} | {each.changes} | {each.calls:,} | "
        f"{sum(each.failed.values())} | {each.wrong} | {each.calm_p99_ms:.1f} | {each.p99_ms:.1f} | "
        f"{each.seconds:.2f} | {each.slowest_s:.2f} | {verdict(each.misses())} |"
    )


def growth_table(result: Growth) -> str:
    """The publications, as Markdown."""
    row = (
        f"| {result.publications}, first {result.first} | {result.first_mib:.0f} | {result.mib:.0f} | "
        f"{result.first_cpu_us:.0f} | {result.cpu_us:.0f} | {verdict(result.misses())} |"
    )
    return f"{_GROWTH_HEAD}\n{row}"


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.refresh", description=__doc__)
    parser.add_argument("--changes", type=int, default=CHANGES, help="of each kind")
    parser.add_argument("--publications", type=int, default=PUBLICATIONS)
    parser.add_argument("--transport", choices=TRANSPORTS, nargs="+", default=TRANSPORTS)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--json", type=Path, help="a file that keeps every figure")
    parser.add_argument("--write", type=Path, help="a Markdown file whose table of refreshes is replaced")
    options = parser.parse_args()
    results = []
    for transport in options.transport:
        for workers in options.workers:
            for change in ("version", "alias"):
                with tempfile.TemporaryDirectory() as folder:
                    results.append(
                        swaps(Path(folder), transport, workers, change=change, changes=options.changes)
                    )
                _stderr.print(_row(results[-1]))
    first = min(FIRST_PUBLICATIONS, options.publications // 2)
    with tempfile.TemporaryDirectory() as folder:
        grown = growth(Path(folder), publications=options.publications, first=first)
    if options.json:
        figures = {"swaps": [asdict(each) for each in results], "growth": asdict(grown)}
        options.json.write_text(json.dumps(figures, indent=1))
    command = (
        f"python -m tests.chaos.refresh --changes {options.changes} --publications {options.publications}"
    )
    text = f"{table(results)}\n\n{growth_table(grown)}\n\n`{command}`. {machine()}.\n"
    print(text)
    if options.write:
        replace_table(options.write, text, name="refresh")


if __name__ == "__main__":
    main()
