"""Kills `lenserve batch` at random, resumes it, and compares every row with a real server's answer.

python -m tests.system.batch_kills --images 20000 --kills 5 [--engine ray] [--format parquet]
"""

import argparse
import asyncio
import csv
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from serving.bundle import Repository
from serving.client.client import Client, ImageFailure, Prediction
from serving.server import run_server
from serving.settings import ServerSettings
from tests.colours import write_colours

MODEL = "colours"
MOST_DIFFERENCE = 1e-6
SEED = 7
BAD_EVERY = 101  # images from one damaged file to the next
LEFT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """One row of an output."""

    path: str
    labels: list[str]
    probabilities: list[float]
    error: str


def write_images(folder: Path, count: int) -> None:
    """Write small JPEG files of noise in three colours, of many sizes; a few are damaged or empty."""
    random_numbers = np.random.default_rng(SEED)
    for number in range(count):
        height, width = random_numbers.integers(6, 40, 2)
        pixels = random_numbers.integers(0, 156, (height, width, 3), dtype=np.uint8)  # (H, W, 3)
        pixels[:, :, number % 3] += random_numbers.integers(0, 100, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        encoded = buffer.getvalue()
        if number % BAD_EVERY == BAD_EVERY - 1:
            encoded = encoded[:20] if number % 2 else b""
        path = folder / f"{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)


def publish(root: Path) -> None:
    """Publish the network that names the strongest colour."""
    root.mkdir(parents=True)
    Repository(root).publish(MODEL, lambda folder: write_colours(folder, rotate=0, lie=False))


def run_with_kills(command: Sequence[str], output: Path, *, parts: int, kills: int, seed: int) -> str:
    """Run a command several times, each time killed after a random number of parts, then to its end.

    Returns: what it printed on stdout at the end.
    """
    choice = random.Random(seed)  # noqa: S311 - no secret
    for left in range(kills, 0, -1):
        done = written(output)
        target = done + choice.randint(0, max(0, (parts - 1 - done) * 2 // (left + 1)))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and (not (output / "job.json").exists() or written(output) < target):
            time.sleep(choice.uniform(0.001, 0.02))
        children = children_of(process.pid)
        process.kill()
        process.communicate()
        wait_for_end(children)
        sys.stderr.write(f"killed with {written(output)} of {parts} parts\n")
    final = subprocess.run(command, capture_output=True, text=True, check=False)
    if final.returncode not in (0, 3):
        raise AssertionError(f"exit code {final.returncode}: {final.stderr}")
    return final.stdout


def written(output: Path) -> int:
    """Parts in an output."""
    return len(list(output.glob("part-*")))


def children_of(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def wait_for_end(pids: Sequence[int]) -> None:
    """Wait until the children of a killed process have ended: nothing may be left."""
    deadline_s = time.monotonic() + LEFT_TIMEOUT_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"children of a killed process are left: {pids}")
        time.sleep(0.01)


def read_output(output: Path) -> list[Result]:
    """Rows of all parts, in their order."""
    rows: list[Result] = []
    for part in sorted(output.glob("part-*")):
        if part.suffix == ".csv":
            with part.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    labels, probabilities = (
                        json.loads(row[key] or "[]") for key in ("labels", "probabilities")
                    )
                    rows.append(Result(row["path"], labels, probabilities, row["error"]))
        else:
            from pyarrow import parquet  # noqa: PLC0415 - CSV needs no library

            for row in parquet.read_table(part).to_pylist():
                labels, probabilities = row["labels"] or [], row["probabilities"] or []
                rows.append(Result(row["path"], labels, probabilities, row["error"] or ""))
    return rows


async def ask_server(repository: Path, files: Sequence[Path]) -> list[Prediction | ImageFailure]:
    """Answers of a real server, over gRPC."""
    settings = ServerSettings(repository=repository, grpc_port=0, http_port=0)
    async with run_server(settings) as server:
        await server.models.scanned()

        def ask() -> list[Prediction | ImageFailure]:
            with Client(f"127.0.0.1:{server.grpc.port}") as client:
                return list(client.classify_all(files, model=MODEL))

        with ThreadPoolExecutor(1) as thread:
            return await asyncio.get_running_loop().run_in_executor(thread, ask)


def largest_difference(rows: Sequence[Result], answers: Sequence[Prediction | ImageFailure]) -> float:
    """Compare rows with the server's answers; errors must be the same, and labels must be equal."""
    largest = 0.0
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, ImageFailure):
            assert row.error == f"{answer.reason}: {answer.message}", (row, answer)
            continue
        assert not row.error, row
        assert row.labels == [each.label for each in answer.labels], (row, answer)
        differences = np.subtract(row.probabilities, [each.probability for each in answer.labels])
        largest = max(largest, float(np.abs(differences).max()))
    return largest


def check(folder: Path, *, images: int, kills: int, engine: str, kind: str, part_images: int) -> str:
    """Generate, classify with kills, and compare; return one line of what was found."""
    photos, repository, output = (folder / name for name in ("photos", "repository", "out"))
    write_images(photos, images)
    publish(repository)
    options = ["--format", kind, "--engine", engine, "--part-images", str(part_images), "--json"]
    places = ["--model", MODEL, "--repository", str(repository), "--output", str(output)]
    command = [sys.executable, "-m", "serving.cli", "batch", str(photos), *places, *options]
    parts = -(-images // part_images)
    summary = json.loads(run_with_kills(command, output, parts=parts, kills=kills, seed=SEED))
    rows = read_output(output)
    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    assert [row.path for row in rows] == expected, "a row is missing or there twice"
    answers = asyncio.run(ask_server(repository, [photos / path for path in expected]))
    difference = largest_difference(rows, answers)
    assert difference <= MOST_DIFFERENCE, difference
    failed = sum(bool(row.error) for row in rows)
    assert summary["images"] == images
    assert summary["failed"] == failed == images // BAD_EVERY
    return (
        f"{engine}, {kind}: {images:,} images in {parts} parts, {kills} kills: complete, no row twice, "
        f"{failed} errors as the server's, labels equal, probabilities within {difference:.1e}; "
        f"the last run classified {images - summary['resumed_images']:,}"
    )


def main() -> None:
    """Check, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--part-images", type=int, default=500)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2]))
    with TemporaryDirectory(prefix="lenserve-batch-") as folder:
        line = check(
            Path(folder),
            images=options.images,
            kills=options.kills,
            engine=options.engine,
            kind=options.format,
            part_images=options.part_images,
        )
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
