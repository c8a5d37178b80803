"""Feeds a million changed inputs to all that reads requests or files: `python -m tests.fuzz`.

Each target runs in a process of its own, so that one that crashes or never returns does not end the others.
What is unexpected is printed, with the command that repeats just that input, and kept in .fuzz/.
"""

import argparse
import json
import mmap
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.runner import Failure, Result, run_target
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

INPUTS = 1_000_000
_STUCK_S = 300.0  # without a new input: a decoder in C never returns
_PARTS = 1000  # what the shares of all targets add up to
_REPRODUCERS = Path(".fuzz")
_SHOWN_OUTCOMES = 8
_SHOWN_CHARACTERS = 300
_INDEX = struct.Struct("=q")


def main() -> int:
    """Run all targets or one; return 1 if anything was unexpected."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=INPUTS, help="of all targets, or of the one that is named"
    )
    parser.add_argument("--seed", default="1", help="any text: equal seeds make equal inputs")
    parser.add_argument("--target", choices=[each.name for each in TARGETS], help="only this one")
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--json", action="store_true", help="print JSON objects, one a target")
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.progress is not None:
        return _run_child(options)
    names = [options.target] if options.target else [each.name for each in TARGETS]
    failures = 0
    for target in TARGETS:
        if target.name in names:
            inputs = options.inputs if options.target else options.inputs * target.share // _PARTS
            result = _run_in_process(target, inputs, options)
            failures += len(result["failures"])
            _print(result, as_json=options.json)
    return min(failures, 1)


def _run_child(options: argparse.Namespace) -> int:
    target = next(each for each in TARGETS if each.name == options.target)
    with options.progress.open("r+b") as file, mmap.mmap(file.fileno(), _INDEX.size) as index:
        result = run_target(
            target,
            seed=options.seed,
            inputs=options.inputs,
            first=options.first,
            progress=lambda at: _INDEX.pack_into(index, 0, at),
        )
    print(json.dumps(result.as_dict()))
    return 0


def _run_in_process(target: Target, inputs: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as progress:
        progress.write(_INDEX.pack(-1))
        progress.flush()
        command = [sys.executable, "-m", "tests.fuzz", "--target", target.name, "--inputs", str(inputs)]
        command += ["--seed", options.seed, "--first", str(options.first), "--progress", progress.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            what = _watch(child, Path(progress.name))
            assert child.stdout is not None
            said = child.stdout.read()
        if not what and child.returncode == 0:
            result: dict[str, Any] = json.loads(said.splitlines()[-1])
            return result
        (index,) = _INDEX.unpack(Path(progress.name).read_bytes())
        died = (
            signal.Signals(-child.returncode).name
            if child.returncode < 0
            else f"exit code {child.returncode}"
        )
        lost = Result(target.name, options.seed, inputs=index + 1 - options.first)
        lost.failures.append(
            Failure(target.name, options.seed, index, what or f"the process ended: {died}", "?")
        )
        return lost.as_dict()


def _watch(child: subprocess.Popen[str], progress: Path) -> str:
    """Wait for the end; kill a process that is stuck, and return why."""
    before, since_s = b"", time.monotonic()
    while True:
        try:
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            now = progress.read_bytes()
            if now != before:
                before, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > _STUCK_S:
                child.kill()
                return f"stuck for {_STUCK_S} s"
        else:
            return ""


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    for failure in result["failures"]:
        _REPRODUCERS.mkdir(exist_ok=True)
        file = _REPRODUCERS / f"{failure['target']}-{failure['seed']}-{failure['index']}.txt"
        text = "\n\n".join(failure[each] for each in ("repeat", "what", "shown_input")) + "\n"
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    if as_json:
        print(json.dumps(result), flush=True)
        return
    each_us = 1e6 * result["cpu_s"] / max(result["inputs"], 1)
    print(
        f"{result['target']:9} {result['inputs']:8,} inputs {result['cpu_s']:6.1f} s of CPU, "
        f"{each_us:5.0f} us each, slowest {result['slowest_s']:.3f} s, "
        f"memory {result['growth_bytes'] / 2**20:+.1f} MB, {len(result['failures'])} unexpected"
    )
    outcomes = list(result["outcomes"].items())[:_SHOWN_OUTCOMES]
    print("          " + ", ".join(f"{name}: {count:,}" for name, count in outcomes), flush=True)
    for failure in result["failures"]:
        print(f"UNEXPECTED: {failure['what']}\n  {failure['shown_input'][:_SHOWN_CHARACTERS]}")
        print(f"  repeat: {failure['repeat']}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
