"""The tables of docs/reliability.md, as Markdown."""

from collections.abc import Sequence

from tests.benchmarks.cells import verdict
from tests.chaos.attack import all_attacks
from tests.chaos.late_calls import LateCalls
from tests.chaos.measuring import Result

_HEAD = (
    "| attack | the attacker | stands for | sent, MiB | p99 without, ms | p99 with, ms | memory, MiB: peak | "
    "left | |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
_LATE_HEAD = "| calls of 8 MB | at once | late | RSS before, MiB | 10 s after the last | ratio | |\n"
_LATE_HEAD += "| --- | --- | --- | --- | --- | --- | --- |"


def attacks_table(results: Sequence[Result]) -> str:
    """One row for each attack."""
    return "\n".join([_HEAD, *map(_row, results)])


def _row(result: Result) -> str:
    attack = all_attacks()[result.attack]
    cells = [
        f"`{attack.name}`",
        attack.does,
        attack.stands_for,
        f"{result.sent_mib:,.0f}",
        f"{result.calm_p99_ms:.1f}",
        f"{result.p99_ms:.1f}",
        f"{result.peak_mib - result.before_mib:+.0f}",
        f"{result.after_mib - result.before_mib:+.0f}",
        verdict(result.misses()),
    ]
    return f"| {' | '.join(cells)} |"


def late_table(results: Sequence[LateCalls]) -> str:
    """One row for each number of late calls."""
    rows = [
        f"| {each.count:,} | {each.at_once} | {each.late:,} | {each.before_mib:.0f} | {each.after_mib:.0f} | "
        f"{each.ratio:.2f} | {verdict(each.misses())} |"
        for each in results
    ]
    return "\n".join([_LATE_HEAD, *rows])
