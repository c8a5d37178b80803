"""`make demo`: trains LeNet-5 on real digits, publishes and serves it, and classifies unseen digits.

Everything is written to .demo, which each demo empties first.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from training.data import load_unchecked
from training.recipe import resolve

RECIPE = "lenet5-digits"
FOLDER = Path(".demo")
REPOSITORY = FOLDER / "repository"
PROGRAMS = Path(sys.executable).parent

STARTING_TIMEOUT_S = 30
SHADES = " ░▒▓█"

console = Console(highlight=False)


def main() -> None:
    """Run the whole path once."""
    started_s = time.monotonic()
    make_empty(FOLDER)

    step("Train LeNet-5 on scikit-learn's digits, and publish it")
    run("lenserve-train", "run", RECIPE, "--repository", REPOSITORY, "--run-dir", FOLDER / "run")

    step("Three test images that it never saw")
    images = held_out_digits()
    for lines in zip(*map(draw, images), strict=True):
        console.print("   ".join(lines).rstrip(), soft_wrap=True)

    step("Serve it, and classify them over gRPC")
    with server() as (grpc_address, http_address):
        before = counters(http_address)
        run("lenserve", "classify", "--server", grpc_address, "--model", RECIPE, "--top-k", "3", *images)
        step(f"Metrics that changed at http://{http_address}/metrics")
        show_moved(before, counters(http_address))
        step("Stop the server")

    console.print(f"\n[bold green]Done[/] in {time.monotonic() - started_s:.0f} s. Next:\n")
    console.print(f"  .venv/bin/lenserve serve --repository {REPOSITORY}")
    console.print(
        f"  .venv/bin/lenserve classify --model {RECIPE} {images[0]}        (in another terminal)",
        soft_wrap=True,
    )
    console.print("  .venv/bin/lenserve-train run transfer --data-root photos        (your photos)")
    console.print("  .venv/bin/lenserve-train recipes")
    report = REPOSITORY / RECIPE / "1" / "report" / "report.html"
    console.print(f"  {report}        (open it in a browser)", soft_wrap=True)


def make_empty(folder: Path) -> None:
    """Create an empty folder; delete an existing one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def step(title: str) -> None:
    """Print the headline of the next part."""
    console.print()
    console.rule(f"[bold]{title}[/]", align="left")


def run(program: str, *arguments: object) -> None:
    """Show a command and run it."""
    words = [program, *map(str, arguments)]
    console.print(f"[dim]$ {' '.join(words)}[/]", soft_wrap=True)
    subprocess.run([str(PROGRAMS / program), *words[1:]], check=True)


def held_out_digits() -> list[Path]:
    """Write three images of the test split as PNG files."""
    recipe = resolve(RECIPE)
    test = load_unchecked(recipe.data, recipe.geometry, None).test
    chosen = [list(test.labels).index(digit) for digit in (3, 8, 5)]
    paths = []
    for number in chosen:
        path = FOLDER / f"held-out-{test.labels[number]}.png"
        Image.fromarray(test.images[number][:, :, 0]).save(path)
        paths.append(path)
    return paths


def draw(path: Path) -> list[str]:
    """Return a picture in characters, two per pixel: characters are twice as high as wide."""
    small = Image.open(path).resize((14, 14), Image.Resampling.BOX)
    rows = np.asarray(small)  # (H, W) uint8
    return ["".join(SHADES[int(value) * len(SHADES) // 256] * 2 for value in row) for row in rows]


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """Start a server on free ports, yield its gRPC and HTTP addresses, and stop it with SIGTERM."""
    words = ["lenserve", "serve", "--repository", str(REPOSITORY), "--grpc-port", "0", "--http-port", "0"]
    console.print(f"[dim]$ {' '.join(words)}[/]", soft_wrap=True)
    command = [str(PROGRAMS / "lenserve"), *words[1:], "--log-json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield wait_until_ready(process)
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=STARTING_TIMEOUT_S)
            for line in log.splitlines():
                show_event(json.loads(line))
        finally:
            process.kill()
    if process.returncode:
        raise SystemExit(f"the server ended with exit code {process.returncode}")
    console.print("the server ended with exit code 0")


def wait_until_ready(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read the server's log until it is ready."""
    addresses = ("", "")
    for line in process.stderr or ():
        event = json.loads(line)
        show_event(event)
        if event["event"] == "listening":
            addresses = event["grpc"], event["http"]
        if event["event"] == "ready":
            return addresses
    raise SystemExit("the server did not become ready")


def show_event(event: dict[str, object]) -> None:
    """Print one line of the server's log."""
    fields = " ".join(
        f"{key}={value}" for key, value in event.items() if key not in ("time", "level", "event")
    )
    console.print(f"  [cyan]{event['event']}[/] {fields}", soft_wrap=True)


def counters(address: str) -> dict[str, float]:
    """Return the server's counters, by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("lenserve_"))
    return {name: float(value) for name, value in samples if "_created" not in name and "_bucket" not in name}


def show_moved(before: dict[str, float], after: dict[str, float]) -> None:
    """Print one line per changed value: names are too long for a table."""
    for name, value in after.items():
        if value != before.get(name, 0):
            console.print(f"  {before.get(name, 0):.4g} → [bold]{value:<8.4g}[/] {name}", soft_wrap=True)


if __name__ == "__main__":
    main()
