"""`make bench`: our server beside its peers, in one run, as a table of ratios.

Servers run on the first core, the client on the last. Every contender is measured ROUNDS times, each time
in another shuffled order, in which those that are compared stand together. Ratios are taken within a round:
what slows the machine then slows both sides.
"""

import argparse
import json
import os
import platform
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import grpc
import onnxruntime
from rich.console import Console
from rich.progress import Progress

from tests.benchmarks import against
from tests.benchmarks.against import LEAST_ROUNDS, compare
from tests.benchmarks.cells import replace_table
from tests.benchmarks.contenders import Facts, Stage
from tests.benchmarks.networks import FOLDER
from tests.benchmarks.processes import calibration_ms
from tests.benchmarks.table import CONTENDERS, ROWS, compared, markdown

SEED = 3
ROUNDS = 9
AGAINST_ROWS = (1, 4, 5, 9)
WINDOW_S = 2.0

_stderr = Console(stderr=True)


def main() -> None:
    """Measure the rows that were asked for, print the table and keep everything in .bench/table.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows; none: all")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, or {LEAST_ROUNDS} pairs for --against")
    parser.add_argument("--window-s", type=float, default=WINDOW_S)
    parser.add_argument("--write", type=Path, help="a Markdown file whose table is replaced")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="another working tree of this project: CPU per request (row 11: time to ready) of this one "
        "as a ratio to that one's",
    )
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if options.against:
        compare_checkouts(options)
        return
    rows = [row for row in ROWS if not options.rows or row.number in options.rows]
    rounds = measure(
        compared([row for row in rows if row.is_possible]), options.rounds or ROUNDS, options.window_s
    )
    (FOLDER / "table.json").write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1))
    text = f"{markdown(rows, rounds)}\n{described(rounds, options.window_s)}\n"
    print(text)
    if options.write:
        replace_table(options.write, text)


def compare_checkouts(options: argparse.Namespace) -> None:
    """Compare this checkout with another one, print the table, and keep every ratio in a file."""
    rows = options.rows or AGAINST_ROWS
    comparisons = compare(
        options.against, rows, rounds=options.rounds or LEAST_ROUNDS, window_s=options.window_s, seed=SEED
    )
    kept = [{"workload": each.workload.name, "ratios": each.ratios} for each in comparisons]
    (FOLDER / "against.json").write_text(json.dumps({"machine": machine(), "workloads": kept}, indent=1))
    print(against.described(comparisons, options.against))
    print(f"\nWindows of {options.window_s:g} s. {machine()}.")


def measure(groups: Sequence[Sequence[str]], rounds: int, window_s: float) -> list[dict[str, Facts]]:
    """Facts of every contender, round by round. Round 0 only warms, and is thrown away."""
    measured: list[dict[str, Facts]] = []
    order = random.Random(SEED)  # noqa: S311 - an order, no secret
    with Stage() as stage, Progress(console=_stderr) as progress:
        task = progress.add_task("starting servers", total=(rounds + 1) * sum(map(len, groups)))
        for number in range(rounds + 1):
            facts: dict[str, Facts] = {}
            for name in _shuffled(groups, order):
                progress.update(task, description=f"{'warming' if not number else f'round {number}'}: {name}")
                machine_now = {"calibration_ms": calibration_ms(), "load_average": os.getloadavg()[0]}
                facts[name] = machine_now | dict(
                    CONTENDERS[name](stage, window_s if number else window_s / 4)
                )
                progress.advance(task)
            measured.append(facts)
    return measured[1:]


def _shuffled(groups: Sequence[Sequence[str]], order: random.Random) -> list[str]:
    return [name for group in order.sample(groups, len(groups)) for name in order.sample(group, len(group))]


def machine() -> str:
    """What a reader must know of it."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return (
        f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, "
        f"ONNX Runtime {onnxruntime.__version__}, grpcio {grpc.__version__}"
    )


def described(rounds: list[dict[str, Facts]], window_s: float) -> str:
    """Under which circumstances the table was made."""
    windows = [facts for measured in rounds for facts in measured.values()]
    if not windows:
        return machine()
    calibrations = [facts["calibration_ms"] for facts in windows]
    loads = [facts["load_average"] for facts in windows]
    return (
        f"Medians [lowest, highest] of {len(rounds)} windows of {window_s:g} s; order shuffled, seed {SEED}. "
        f"{machine()}. Calibration: {statistics.median(calibrations):.1f} ms "
        f"[{min(calibrations):.1f}, {max(calibrations):.1f}]. Load average: {statistics.median(loads):.1f} "
        f"[{min(loads):.1f}, {max(loads):.1f}], where the benchmark alone makes up to 2."
    )


if __name__ == "__main__":
    main()
