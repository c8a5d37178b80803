"""Tests and measures Lenserve on a GPU (`make gpu`); each part has a time limit.

Every part is a process of its own that writes its rows as it finds them. A part that fails or times out does
not stop the others; the last line says what failed. With --device cpu the same parts run at small scale.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.cells import has_table, replace_table
from tests.benchmarks.processes import process_tree
from tests.gpu.recording import DEVICE_VARIABLE, FILE_VARIABLE
from tests.gpu.rows import Row, markdown, read_rows

RESULTS = Path(".bench/gpu")
DATA = Path("../shared/data")
_LOG_LINES = 25  # of a part that failed

# What pytest runs: everything here, and what other folders mark as needing a GPU. What might hang comes last.
_TESTS = (
    "tests/gpu/test_learning.py",
    "tests/serving/engine/test_onnx.py",
    "tests/training/data/storage/test_device_images.py",
    "tests/gpu/test_process_group.py",
)
_TEST_LIMIT_S = 50

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Part:
    """One part, the most important first."""

    name: str
    limit_s: float  # measured on an H200: 7, 75, 124 s, and the last two in part

    def command(self, options: argparse.Namespace, file: Path) -> list[str]:
        """The program of this part."""
        if self.name == "tests":
            # Warnings are errors where the pinned versions run. A bare GPU machine brings its own.
            plain = ["-W", "default", "-p", "no:cacheprovider", "-v", f"--timeout={_TEST_LIMIT_S}"]
            plain += ["--durations=15", "-p", "tests.gpu.recording"]
            return [sys.executable, "-m", "pytest", "-m", "gpu", *plain, *_TESTS]
        command = [sys.executable, "-m", "tests.gpu.part", self.name, "--device", options.device]
        root = ["--data-root", str(options.data_root)] if options.data_root else []
        return [*command, "--file", str(file), *root]


PARTS = (
    Part("facts", 20),
    Part("tests", 75),
    Part("serving_speed", 115),
    Part("training_speed", 100),
    Part("faults", 30),
)


def main() -> None:
    """Run the parts that were asked for, print the table, and exit with 1 if any failed."""
    options = _options()
    _adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results: Path = options.results
    began_s = time.monotonic()
    rows: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    for part in PARTS:
        if part.name not in options.parts:
            continue
        rows[part.name], failure = _run(part, options)
        if failure:
            failed[part.name] = failure
        _write(results, rows, failed, options, time.monotonic() - began_s)
    table = (results / "results.md").read_text()
    print(table)
    if options.write:
        replace_table(options.write, table)
    if failed:
        print("FAILED: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
        raise SystemExit(1)
    print(f"passed: {', '.join(rows)} on {options.device} in {time.monotonic() - began_s:.0f} s")


def _run(part: Part, options: argparse.Namespace) -> tuple[list[Row], str]:
    """The rows of a part, and why it failed."""
    file, log = options.results / f"{part.name}.json", options.results / f"{part.name}.log"
    file.unlink(missing_ok=True)
    limit_s = options.limit_s or part.limit_s
    print(f"--- {part.name}: at most {limit_s:g} s, log in {log}", flush=True)
    environment = {**os.environ, DEVICE_VARIABLE: options.device, FILE_VARIABLE: str(file.resolve())}
    if options.data_root:
        environment["LENSERVE_TEST_DATA"] = str(options.data_root.resolve())
    began_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            part.command(options, file),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            failure = _wait(process, limit_s)
        finally:
            _end_descendants()
    seconds = time.monotonic() - began_s
    rows = read_rows(file)
    wrong = [f"{row.what} ({row.wrong})" for row in rows if row.wrong]
    if wrong:  # which is why its exit code is 1
        failure = ", ".join([*wrong, *([failure] if failure.startswith("timed out") else [])])
    print(f"    {failure or 'passed'} after {seconds:.1f} s", flush=True)
    if failure:
        print("\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]), flush=True)
    return rows, failure


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Why it failed; empty where it did not."""
    try:
        code = process.wait(limit_s)
        failure = f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        failure = f"timed out after {limit_s:g} s"
    return failure


def _end_descendants() -> None:
    """Kill all that a part has left: servers run in sessions of their own."""
    for pid in list(process_tree(os.getpid()))[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _adopt_orphans() -> None:
    """Become the parent of what a part leaves behind when it ends (prctl(2), Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _write(
    results: Path,
    rows: dict[str, list[Row]],
    failed: dict[str, str],
    options: argparse.Namespace,
    seconds: float,
) -> None:
    now = datetime.now(UTC)
    command = f"tests/gpu/run.sh --device {options.device} --parts {','.join(options.parts)}"
    circumstances = f"`{command}`, {now:%Y-%m-%d %H:%M} UTC, {seconds:.0f} s in all."
    if failed:
        circumstances += " Failed: " + "; ".join(f"{name}: {why}" for name, why in failed.items()) + "."
    whole = {
        "command": command,
        "at": now.isoformat(),
        "seconds": round(seconds, 1),
        "failed": failed,
        "parts": {name: [asdict(row) for row in found] for name, found in rows.items()},
    }
    (results / "results.json").write_text(json.dumps(whole, indent=1))
    (results / "results.md").write_text(markdown(rows, circumstances))


def _options() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="tests/gpu/run.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: tests/gpu/run.sh --device cpu --parts facts,serving_speed --results /tmp/gpu",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument(
        "--parts",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=names,
        help=f"some of {','.join(names)}; default: all",
    )
    parser.add_argument("--results", type=_from_caller, default=RESULTS, help=f"folder; default: {RESULTS}")
    parser.add_argument(
        "--data-root",
        type=_from_caller,
        default=DATA if DATA.is_dir() else None,
        help="folder with MNIST/raw and cifar10.npz, if available; default: %(default)s",
    )
    parser.add_argument("--limit-s", type=float, help="time limit per part, seconds; default: each its own")
    parser.add_argument(
        "--write", type=_from_caller, help="a Markdown file, docs/gpu.md: its table is replaced at the end"
    )
    options = parser.parse_args()
    if options.data_root is not None and not options.data_root.is_dir():
        parser.error(f"--data-root {options.data_root} is not a directory")
    if unknown := [name for name in options.parts if name not in names]:
        parser.error(f"there is no part {unknown[0]!r}; parts are {', '.join(names)}")
    if options.limit_s is not None and options.limit_s <= 0:
        parser.error(f"--limit-s {options.limit_s:g} is not positive")
    if options.write is not None and not has_table(options.write):
        parser.error(f"--write {options.write}: there is no file with the two marks of a table")
    try:
        options.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--results {options.results} cannot be made: {error.strerror}")
    return options


def _from_caller(path: str) -> Path:
    """A path, relative to the folder in which the command was called."""
    return Path(os.environ.get("LENSERVE_GPU_CALLED_IN", "."), path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what the finished parts found is in the results folder", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
