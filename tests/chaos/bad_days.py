"""What does a bad day cost? Gives servers one fault after another while clients call.

`python -m tests.chaos.bad_days`; `--write docs/reliability.md` replaces the table "Bad days" there.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.benchmarks.cells import replace_table
from tests.chaos.day_clients import Call, Probe, fetch, lost, normal_after_s, observing
from tests.chaos.day_server import day_server
from tests.chaos.faults import Fault, all_faults
from tests.chaos.machine import machine

SECONDS = 14.0  # of each fault, and what follows
_FAULT_S = 6.0  # those that end
_CALM_S = 2.0
_HEAD = (
    "| fault | what happens | lost of calls tried once | lost by the Python client | normal after, s | "
    "`/livez` | `/readyz` | metric |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)

_stderr = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Day:
    """What one fault cost."""

    fault: Fault
    plain: Sequence[Call]
    retrying: Sequence[Call]
    probes: Sequence[Probe]
    struck_s: float
    before: dict[str, float]  # the metric that shows it: series -> value
    since: dict[str, float]  # its values since then, those that differ most

    @property
    def lost_plain(self) -> list[Call]:
        """Calls without an answer of clients that try once."""
        return lost(self.plain, since_s=self.struck_s)

    @property
    def lost_retrying(self) -> list[Call]:
        """Calls without an answer of the Python client."""
        return lost(self.retrying, since_s=self.struck_s)

    @property
    def highest(self) -> float:
        """The metric that shows it, summed over its series."""
        return sum(self.since.values())

    @property
    def normal_after_s(self) -> float:
        """When every call was answered in time again, also if it is tried once."""
        return normal_after_s(self.plain, since_s=self.struck_s)

    def says(self, path: str) -> str:
        """What a probe said, other than 200."""
        failed = [each for each in self.probes if each.path == path and each.code != 200]
        if not failed:
            return "200"
        first_s, last_s = (each.asked_s - self.struck_s for each in (failed[0], failed[-1]))
        bodies = "; ".join(dict.fromkeys(each.body for each in failed[:1] + failed[-1:]))
        code = "no answer" if not failed[0].code else f"{failed[0].code} ({bodies})"
        return f"{code} from {first_s:.1f} to {last_s:.1f} s"


def main() -> None:
    """Measure the faults that were asked for, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.bad_days", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; none: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each fault, and what follows")
    parser.add_argument("--write", type=Path, help="a Markdown file whose table `bad-days` is replaced")
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    options = parser.parse_args()
    faults = all_faults()
    if options.list:
        for fault in faults.values():
            print(f"{fault.name:27} {fault.does}")
        return
    if unknown := set(options.names) - set(faults):
        parser.error(f"unknown faults {', '.join(sorted(unknown))}: see --list")
    days, skipped = [], []
    for fault in faults.values():
        if options.names and fault.name not in options.names:
            continue
        if missing := [program for program in fault.needs if shutil.which(program) is None]:
            skipped.append(f"`{fault.name}` (needs {', '.join(missing)})")
            continue
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # `/tmp` is filled
            days.append(asyncio.run(have(fault, Path(folder), seconds=options.seconds)))
        _stderr.print(_row(days[-1]), markup=False)
    text = "\n".join([_HEAD, *map(_row, days)])
    text += f"\n\n`python -m tests.chaos.bad_days`, each fault once. {machine()}.\n"
    if skipped:
        text += f"\nNot measured: {', '.join(skipped)}.\n"
    print(text)
    if options.write:
        replace_table(options.write, text, name="bad-days")


async def have(fault: Fault, folder: Path, *, seconds: float, calm_s: float = _CALM_S) -> Day:
    """Start a server, call it, give it the fault, and end that before the time is over."""
    with day_server(folder, fault.options, fault.wrapper(folder)) as server:
        async with observing(server.grpc, server.http) as seen:
            await asyncio.sleep(calm_s)
            before = await asyncio.to_thread(_series, server.http, fault.metric)
            struck_s = time.monotonic()
            await asyncio.to_thread(fault.strike, server)
            await asyncio.sleep(min(_FAULT_S, seconds / 2))
            during = await asyncio.to_thread(_series, server.http, fault.metric)
            await asyncio.to_thread(fault.end, server)
            await asyncio.sleep(seconds - min(_FAULT_S, seconds / 2))
            after = await asyncio.to_thread(_series, server.http, fault.metric)
    most_changed = {
        name: max(
            (during.get(name, 0.0), after.get(name, 0.0)),
            key=lambda value: abs(value - before.get(name, 0.0)),
        )
        for name in {*during, *after}
    }
    return Day(fault, seen.plain, seen.retrying, seen.probes, struck_s, before, most_changed)


def _series(http: str, metric: str) -> dict[str, float]:
    _, text = fetch(f"http://{http}/metrics")
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(metric)]
    return {name: float(value) for name, _, value in lines}


def _row(day: Day) -> str:
    cells = [
        f"`{day.fault.name}`",
        day.fault.does,
        _share(day.lost_plain, day.plain),
        _share(day.lost_retrying, day.retrying),
        f"{day.normal_after_s:.1f}",
        day.says("/livez"),
        day.says("/readyz"),
        _change(day),
    ]
    return f"| {' | '.join(cells)} |"


def _share(missing: Sequence[Call], calls: Sequence[Call]) -> str:
    problems = ", ".join(sorted({call.problem for call in missing}))
    return f"{len(missing)} of {len(calls):,}" + (f" ({problems})" if problems else "")


def _change(day: Day) -> str:
    changed = [name for name, value in day.since.items() if day.before.get(name, 0.0) != value]
    if not changed:
        return f"`{day.fault.metric}` unchanged"
    largest = max(changed, key=lambda name: abs(day.since[name] - day.before.get(name, 0.0)))
    return f"`{largest}`: {_number(day.before.get(largest, 0.0))} to {_number(day.since[largest])}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
