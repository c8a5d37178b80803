"""The rows of the table: which contenders are compared, by which fact, and what must come out."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.cells import between, number, spread
from tests.benchmarks.contenders import (
    Contender,
    Facts,
    awake,
    closed_loop,
    onnx_alone,
    overload,
    parts_alone,
    start_up,
)
from tests.benchmarks.networks import LENET, TENSORS
from tests.benchmarks.processes import CORES, can_keep_cores_awake

CONTENDERS: Mapping[str, Contender] = {
    **{
        f"{name}, {count} in flight": closed_loop(name, count)
        for name, counts in {
            "lenserve": (1, 16, 64),
            "lenserve grpc": (16,),
            "lenserve on h2corn": (16,),
            "triton": (16,),
            "tutorial": (1, 16),
            "mosec": (64,),
            "lenserve jpeg": (16,),
            "triton jpeg": (16,),
            "tutorial jpeg": (16,),
            "mosec jpeg": (16,),
            "lenserve resnet18": (16,),
        }.items()
        for count in counts
    },
    "lenserve stream, 1 in flight": closed_loop("lenserve stream", 1),
    "lenserve, 64 in flight on 16 connections": closed_loop("lenserve", 64, most_connections=16),
    "lenserve two workers, 128 in flight on 32 connections": closed_loop(
        "lenserve two workers", 128, most_connections=32, client_cores=CORES[:2]
    ),
    **{f"{name}, 1 in flight, awake": awake(closed_loop(name, 1)) for name in ("lenserve", "tutorial")},
    "start": start_up,
    "overload": overload,
    "decode, resize, normalise, run": parts_alone,
    "ONNX Runtime, resnet18, batch 8": onnx_alone(TENSORS, 8),
    "ONNX Runtime, LeNet-5, batch 8": onnx_alone(LENET, 8),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: a fact of ours as a ratio to the best of some references, or alone without any."""

    number: int
    measure: str
    fact: str
    ours: str
    references: tuple[str, ...]
    must: float
    aim: float
    at_least: bool = False  # larger is better
    is_possible: bool = True  # on this machine

    @property
    def contenders(self) -> tuple[str, ...]:
        """Everyone who must be measured for it."""
        return (self.ours, *self.references)

    def values(self, rounds: Sequence[Mapping[str, Facts]]) -> list[float]:
        """The ratio of each round."""
        reference = self.reference(rounds)
        if reference is None:
            return [facts[self.ours][self.fact] for facts in rounds]
        return [facts[self.ours][self.fact] / facts[reference][self.fact] for facts in rounds]

    def reference(self, rounds: Sequence[Mapping[str, Facts]]) -> str | None:
        """The best of the references over all rounds."""
        choose = max if self.at_least else min
        return choose(
            self.references,
            key=lambda name: statistics.median(facts[name][self.fact] for facts in rounds),
            default=None,
        )

    def verdict(self, value: float) -> str:
        """How a ratio stands to what was asked."""
        sign = -1 if self.at_least else 1
        if sign * value <= sign * self.aim:
            return "aim met"
        return "must met" if sign * value <= sign * self.must else "**not met**"


ROWS = (
    Row(
        1,
        "LeNet-5, KServe v2, 16 in flight: server CPU a request, to Triton's Python backend",
        "cpu_ms",
        "lenserve, 16 in flight",
        ("triton, 16 in flight",),
        0.60,
        0.35,
    ),
    Row(
        2,
        "the same, to the tutorial server",
        "cpu_ms",
        "lenserve, 16 in flight",
        ("tutorial, 16 in flight",),
        0.35,
        0.20,
    ),
    Row(
        3,
        "the same over `--transport grpc`, to the tutorial server",
        "cpu_ms",
        "lenserve grpc, 16 in flight",
        ("tutorial, 16 in flight",),
        1.2,
        0.8,
    ),
    Row(
        4,
        "one in flight: p50, to the tutorial server",
        "p50_ms",
        "lenserve, 1 in flight",
        ("tutorial, 1 in flight",),
        0.45,
        0.25,
    ),
    Row(
        4,
        "the same, where idle cores wait for 0.2 ms before they halt",
        "p50_ms",
        "lenserve, 1 in flight, awake",
        ("tutorial, 1 in flight, awake",),
        0.45,
        0.25,
        is_possible=can_keep_cores_awake(),
    ),
    Row(
        5,
        "64 in flight: CPU a request, to mosec (HTTP, raw bytes)",
        "cpu_ms",
        "lenserve, 64 in flight",
        ("mosec, 64 in flight",),
        2.0,
        1.0,
    ),
    Row(
        6,
        "500x375 JPEG to mobilenet_v3_small, 16 in flight: CPU a request, to the best peer",
        "cpu_ms",
        "lenserve jpeg, 16 in flight",
        ("triton jpeg, 16 in flight", "tutorial jpeg, 16 in flight", "mosec jpeg, 16 in flight"),
        0.65,
        0.55,
    ),
    Row(
        7,
        "the same, to the sum of its parts alone",
        "cpu_ms",
        "lenserve jpeg, 16 in flight",
        ("decode, resize, normalise, run",),
        1.15,
        1.05,
    ),
    Row(
        8,
        "resnet18 from tensors: images/s, to ONNX Runtime alone at batch 8, one thread",
        "requests_per_s",
        "lenserve resnet18, 16 in flight",
        ("ONNX Runtime, resnet18, batch 8",),
        0.93,
        0.98,
        at_least=True,
    ),
    Row(
        9,
        "streaming, CPU a LeNet-5 image, to ONNX Runtime alone at batch 8",
        "cpu_ms",
        "lenserve stream, 1 in flight",
        ("ONNX Runtime, LeNet-5, batch 8",),
        4.0,
        2.0,
    ),
    Row(
        10,
        "two workers on two cores: requests/s, to one on one core, the client's cost apart",
        "apart_per_s",
        "lenserve two workers, 128 in flight on 32 connections",
        ("lenserve, 64 in flight on 16 connections",),
        1.6,
        1.85,
        at_least=True,
    ),
    Row(11, "`lenserve serve` to ready with LeNet-5, s", "start_s", "start", (), 1.5, 0.7),
    Row(11, "resident memory then, MiB", "resident_mib", "start", (), 130, 90),
    Row(
        12,
        "photographs, open loop at 200 % of capacity: good answers to capacity",
        "goodput",
        "overload",
        (),
        0.9,
        0.97,
        at_least=True,
    ),
    Row(12, "the same: p99 of what is accepted, to p99 at 80 %", "p99_growth", "overload", (), 3.0, 2.0),
    Row(
        14,
        "LeNet-5, KServe v2, 16 in flight: CPU a request, to the same application on h2corn",
        "cpu_ms",
        "lenserve, 16 in flight",
        ("lenserve on h2corn, 16 in flight",),
        0.77,  # 1 / 1.3: above it our own HTTP server goes (serving/transports/http/README.md)
        0.60,
    ),
    Row(
        14,
        "the same, to `--transport grpc`",
        "cpu_ms",
        "lenserve, 16 in flight",
        ("lenserve grpc, 16 in flight",),
        0.77,
        0.25,
    ),
)


def compared(rows: Sequence[Row]) -> list[list[str]]:
    """The contenders in groups: who is compared with each other, by one row or over several."""
    groups: list[set[str]] = []
    for row in rows:
        touching = [group for group in groups if not group.isdisjoint(row.contenders)]
        groups = [group for group in groups if group not in touching]
        groups.append(set(row.contenders).union(*touching))
    return [sorted(group) for group in groups]


def markdown(rows: Sequence[Row], rounds: Sequence[Mapping[str, Facts]]) -> str:
    """The table of ratios, and below it what each contender measured."""
    lines = [
        "| # | measure | ours | reference | ratio | must | aim | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_line(row, rounds) for row in rows]
    lines += ["", "| contender | CPU-ms | requests/s | p50 ms | p99 ms | calibration ms |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    names = dict.fromkeys(name for row in rows if row.is_possible for name in row.contenders)
    facts = ("cpu_ms", "requests_per_s", "p50_ms", "p99_ms", "calibration_ms")
    for name in names:
        cells = (spread([each[name][fact] for each in rounds if fact in each[name]]) for fact in facts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _line(row: Row, rounds: Sequence[Mapping[str, Facts]]) -> str:
    sign = ">=" if row.at_least else "<="
    reference, ratio, verdict = "", "", "not possible here"
    if row.is_possible:
        values = row.values(rounds)
        middle = statistics.median(values)
        reference, ratio = row.reference(rounds) or "", f"**{number(middle)}** [{between(values)}]"
        verdict = row.verdict(middle)
    cells = (reference, ratio, f"{sign} {row.must:g}", f"{sign} {row.aim:g}", verdict)
    return f"| {row.number} | {row.measure} | {row.ours} | {' | '.join(cells)} |"
