"""`make chaos`: attacks servers, and prints what a good client and the memory show."""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tests.benchmarks.cells import replace_table
from tests.chaos import late_calls
from tests.chaos.attack import all_attacks
from tests.chaos.attacker import raise_descriptors
from tests.chaos.machine import machine
from tests.chaos.measuring import MOST_P99_MS, MOST_P99_RATIO, PENDING_MIB, Result, measure
from tests.chaos.table import attacks_table, late_table

SECONDS = 10.0
LATE = "late-calls"

_stderr = Console(stderr=True, soft_wrap=True)


def main() -> None:
    """Measure the attacks that were asked for, and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"attacks, or {LATE}; none: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each attack")
    parser.add_argument("--transport", choices=("h2", "grpc"), default="h2")
    parser.add_argument("--json", type=Path, help="a file that keeps every figure")
    parser.add_argument(
        "--write", type=Path, help="a Markdown file whose table of this transport is replaced"
    )
    parser.add_argument("--list", action="store_true", help="print the attacks and end")
    options = parser.parse_args()
    if options.list:
        for attack in all_attacks().values():
            print(f"{attack.name:34} {attack.does} ({attack.stands_for})")
        return
    unknown = set(options.names) - set(all_attacks()) - {LATE}
    if unknown:
        parser.error(f"unknown attacks {', '.join(sorted(unknown))}: see --list")
    raise_descriptors()
    results, late = run(options)
    if options.json:
        figures = {"machine": machine(), "seconds": options.seconds, "transport": options.transport}
        figures |= {"attacks": [asdict(each) for each in results], LATE: [asdict(each) for each in late]}
        options.json.write_text(json.dumps(figures, indent=1))
    text = described(results, late, options)
    print(text)
    if options.write:
        replace_table(options.write, text, name=options.transport)


def run(options: argparse.Namespace) -> tuple[list[Result], list[late_calls.LateCalls]]:
    """Attack after attack, each against a new server."""
    arguments = ["--transport", options.transport]
    results, late = [], []
    with tempfile.TemporaryDirectory() as folder:
        for attack in all_attacks().values():
            is_possible = options.transport == "h2" or not attack.is_http1
            if is_possible and (not options.names or attack.name in options.names):
                results.append(measure(attack, Path(folder), seconds=options.seconds, options=arguments))
                _stderr.print(_line(results[-1]))
        for at_once in late_calls.AT_ONCE:
            for count in late_calls.COUNTS:
                if not options.names or LATE in options.names:
                    late.append(late_calls.measure(Path(folder), count, at_once, options=arguments))
                    _stderr.print(_late_line(late[-1]))
    return results, late


def _line(result: Result) -> str:
    growth = f"{result.peak_mib - result.before_mib:5.0f} {result.after_mib - result.before_mib:5.0f} MiB"
    return (
        f"{result.attack:34} p99 {result.calm_p99_ms:6.1f} {result.p99_ms:8.1f} ms  growth {growth}  "
        f"sent {result.sent_mib:6.0f} MiB in {result.connected:6} conn  core {result.cpu_share:4.0%}  "
        f"{'; '.join(result.misses()) or 'met'}"
    )


def _late_line(late: late_calls.LateCalls) -> str:
    return (
        f"{late.count:5} calls of 8 MB, {late.at_once} at once, {late.late} late: {late.before_mib:.0f} MiB "
        f"before, {late.after_mib:.0f} MiB after  {'; '.join(late.misses()) or 'met'}"
    )


def described(results: list[Result], late: list[late_calls.LateCalls], options: argparse.Namespace) -> str:
    """Both tables, and how they were made."""
    parts = []
    if results:
        met = sum(not each.misses() for each in results)
        parts.append(attacks_table(results))
        parts.append(
            f"{met} of {len(results)} attacks met every must: p99 at most {MOST_P99_MS:.0f} ms or "
            f"{MOST_P99_RATIO:g} times that without; growth at most {PENDING_MIB:.0f} + 64 MiB, and at most "
            "64 MiB left after 10 s; every call of the good client answered."
        )
    if late:
        parts.append(late_table(late))
    parts.append(
        f"`python -m tests.chaos --transport {options.transport} --seconds {options.seconds:g}`, each attack "
        f"once against a new server. {machine()}."
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
