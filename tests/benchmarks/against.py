"""`make bench --against CHECKOUT`: CPU per request and time to ready, as ratios to that one's.

Both servers run on the same core and are measured in turns: a pair of windows in shuffled order gives one
ratio. What slows the machine slows both windows of a pair.
"""

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.benchmarks.cells import number
from tests.benchmarks.contenders import ENTRANTS, Contender, Entrant, Facts, Stage, closed_loop, start_up
from tests.benchmarks.servers import Server, Start
from tests.benchmarks.table import ROWS

LEAST_ROUNDS = 15
LIMIT = 1.05
CONFIDENCE = 0.95

_SUFFIX = " of the other checkout"
_START_FACT = "start_s"
_stderr = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Workload:
    """One load on a server of ours that rows of the table measure, or its start."""

    rows: tuple[int, ...]
    entrant: str
    in_flight: int = 0  # of a load

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.entrant}, {self.in_flight} in flight" if self.in_flight else self.entrant

    @property
    def fact(self) -> str:
        """What is compared."""
        return "cpu_ms" if self.in_flight else _START_FACT


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ratios of one workload, this checkout's CPU per request or time to ready to the other's."""

    workload: Workload
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all pairs."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median: 95 %, from the order of the ratios alone."""
        return median_interval(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the whole interval lies on one side of the limit."""
        low, high = self.interval
        if high <= LIMIT:
            return f"at most {LIMIT}"
        return f"**above {LIMIT}**" if low > LIMIT else "not resolved"


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """A confidence interval of the median between two order statistics: no distribution is assumed.

    The number of values below the true median is binomial with p = 1/2. The ranks are the innermost ones,
    equally far from both ends, that cover it with this confidence (David, Nagaraja: Order Statistics, 7.1).

    Raises:
        ValueError: there are too few values for any such interval.
    """
    ordered, count = sorted(values), len(values)
    tail = 0.0  # the chance that fewer than `rank` values lie below the median
    rank = 0
    while tail + comb(count, rank) / 2**count <= (1 - confidence) / 2:
        tail += comb(count, rank) / 2**count
        rank += 1
    if rank == 0:
        raise ValueError(f"{count} values are too few for a {confidence:.0%} interval of their median")
    return ordered[rank - 1], ordered[count - rank]


def workloads(rows: Sequence[int]) -> list[Workload]:
    """What rows measure of our server, each workload once.

    Raises:
        SystemExit: a row measures something else than CPU under a steady load, or the start.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for row in ROWS:
        entrant, _, load = row.ours.rpartition(", ")
        if row.number not in rows:
            continue
        if row.fact == _START_FACT:
            found[row.ours, 0] = [row.number]
        elif entrant in ENTRANTS and load.endswith(" in flight"):
            found.setdefault((entrant, int(load.split()[0])), []).append(row.number)
    if missing := set(rows) - {each for numbers in found.values() for each in numbers}:
        names = ", ".join(map(str, sorted(missing)))
        raise SystemExit(
            f"--against compares CPU per request under a steady load, and starts: row {names} has none"
        )
    return [Workload(tuple(dict.fromkeys(numbers)), *key) for key, numbers in found.items()]


def compare(
    checkout: Path, rows: Sequence[int], *, rounds: int, window_s: float, seed: int
) -> list[Comparison]:
    """Measure pairs; workloads that are not resolved after the rounds get as many again.

    Raises:
        SystemExit: the checkout has no code of this project, or too few rounds were asked for.
    """
    if rounds < LEAST_ROUNDS:
        raise SystemExit(f"--rounds {rounds}: a comparison needs at least {LEAST_ROUNDS}")
    checkout = _checked(checkout)
    order = random.Random(seed)  # noqa: S311 - an order, no secret
    ratios: dict[Workload, list[float]] = {each: [] for each in workloads(rows)}
    with Stage(_entrants(checkout, ratios)) as stage:
        measure = partial(_measure, stage, checkout, order=order, rounds=rounds, window_s=window_s)
        measure(ratios)
        measure({each: kept for each, kept in ratios.items() if _is_open(kept)})
    return [Comparison(each, tuple(kept)) for each, kept in ratios.items()]


def described(comparisons: Sequence[Comparison], checkout: Path) -> str:
    """A Markdown table."""
    here, there = _commit(Path()), _commit(checkout)
    lines = [
        f"CPU per request, or time to ready in row 11, of this checkout ({here}) to the other ({there}).",
        "",
        "| rows | workload | pairs | median ratio [95 % interval] | lowest, highest | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in comparisons:
        low, high = each.interval
        lines.append(
            f"| {', '.join(map(str, each.workload.rows))} | {each.workload.name} | {len(each.ratios)} "
            f"| **{number(each.median)}** [{number(low)}, {number(high)}] "
            f"| {number(min(each.ratios))}, {number(max(each.ratios))} | {each.verdict} |"
        )
    return "\n".join(lines)


def _measure(
    stage: Stage,
    checkout: Path,
    ratios: Mapping[Workload, list[float]],
    *,
    order: random.Random,
    rounds: int,
    window_s: float,
) -> None:
    """Append one ratio a round to every workload; one more round comes first and only warms."""
    pairs = {each: (_contender(each), _contender(each, checkout)) for each in ratios}
    with Progress(console=_stderr) as progress:
        task = progress.add_task("starting servers", total=(rounds + 1) * len(pairs))
        for turn in range(rounds + 1):
            for each in order.sample(list(pairs), len(pairs)):
                progress.update(task, description=f"{f'pair {turn}' if turn else 'warming'}: {each.name}")
                ratio = _ratio(stage, pairs[each], each.fact, order, window_s if turn else window_s / 4)
                if turn:
                    ratios[each].append(ratio)
                progress.advance(task)


def _is_open(ratios: Sequence[float]) -> bool:
    low, high = median_interval(ratios)
    return low <= LIMIT < high


def _ratio(
    stage: Stage, pair: tuple[Contender, Contender], fact: str, order: random.Random, window_s: float
) -> float:
    facts: dict[Contender, Facts] = {}
    for contender in order.sample(pair, len(pair)):
        facts[contender] = contender(stage, window_s)
    here, there = (facts[contender][fact] for contender in pair)
    return here / there


def _contender(workload: Workload, checkout: Path | None = None) -> Contender:
    """A server of this checkout, or of the other one."""
    if workload.fact == _START_FACT:
        return partial(start_up, checkout=checkout)
    return closed_loop(workload.entrant + (_SUFFIX if checkout else ""), workload.in_flight)


def _entrants(checkout: Path, workloads: Iterable[Workload]) -> Mapping[str, Entrant]:
    others = {}
    for name in {each.entrant for each in workloads if each.in_flight}:
        start, write_request, model = ENTRANTS[name]
        others[name + _SUFFIX] = (_elsewhere(start, checkout), write_request, model)
    return {**ENTRANTS, **others}


def _elsewhere(start: Callable[..., Server], checkout: Path) -> Start:
    """The same server from another checkout."""
    return partial(start, checkout=checkout)


def _checked(checkout: Path) -> Path:
    """The folder, once Python has shown that it runs that folder's code."""
    folder = checkout.resolve()
    command = [sys.executable, "-c", "import serving.cli; print(serving.cli.__file__)"]
    file = _output(command, folder) if folder.is_dir() else ""
    if not file or not Path(file).is_relative_to(folder):
        raise SystemExit(f"--against {checkout}: this is not a working tree of this project")
    return folder


def _commit(checkout: Path) -> str:
    return _output(["git", "describe", "--always", "--dirty"], checkout) or str(checkout)


def _output(command: Sequence[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
