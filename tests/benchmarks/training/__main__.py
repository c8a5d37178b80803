"""`make bench-training`: time to 99.0 % on MNIST beside a tutorial's loop, and what each speed measure does.

All rows are made in one run on one machine. Contenders take turns, in an order that is shuffled anew each
turn; ratios are taken within a turn, so that what slows the machine then slows both sides.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from serving.errors import LenserveError
from tests.benchmarks.cells import replace_table
from tests.benchmarks.training.race import RUNNERS, Run, run_alone
from tests.benchmarks.training.report import Measured, as_values, markdown
from tests.benchmarks.training.speed import RECIPES, Trainer, Variant, Window, load, variants
from training.data import load_unchecked
from training.devices.device import Device, choose, prepare
from training.recipe import resolve

FOLDER = Path(".bench")
SEED = 3
TURNS = 5
RACES = 3  # the tutorial's loop takes minutes
WINDOW_S = 3.0

_stderr = Console(stderr=True)


def main() -> None:
    """Measure, print the table, and keep every number in .bench/training.json."""
    options = _options()
    FOLDER.mkdir(exist_ok=True)
    try:
        device = choose(options.device)
        cifar = _cifar10(options.data_root)
        _check_data(options.data_root, cifar)
        loads: list[float] = []
        runs = race(options.data_root, options.device, options.races, loads)
        windows, epoch_images = speed(cifar, device, options.turns, options.window_s, loads)
    except LenserveError as error:
        raise SystemExit(f"bench-training: {error}") from error
    measured = Measured(runs, windows, epoch_images, _circumstances(options, device, loads))
    values = json.dumps(as_values(measured))
    (FOLDER / "training.json").write_text(values)
    print(values if options.json else markdown(measured))
    if options.write:
        replace_table(options.write, markdown(measured))


def race(data_root: Path, device_name: str, races: int, loads: list[float]) -> dict[str, list[Run]]:
    """Time to the goal, of ours and of the tutorial's loop, each race with another seed."""
    order = random.Random(SEED)  # noqa: S311 - an order, no secret
    runs: dict[str, list[Run]] = {name: [] for name in RUNNERS}
    with Progress(console=_stderr) as progress:
        task = progress.add_task("", total=races * len(runs))
        for seed in range(races):
            for name in order.sample(list(runs), len(runs)):
                progress.update(task, description=f"race {seed + 1}: {name}")
                loads.append(os.getloadavg()[0])
                runs[name].append(run_alone(name, data_root, device_name, seed))
                progress.advance(task)
    return runs


def speed(
    data_root: Path, device: Device, turns: int, window_s: float, loads: list[float]
) -> tuple[dict[Variant, list[Window]], dict[str, int]]:
    """Windows of all variants, recipe by recipe; and how many images an epoch of each has."""
    prepare(device)  # as every run of ours is
    cores = len(os.sched_getaffinity(0))
    windows: dict[Variant, list[Window]] = {variant: [] for variant in variants(cores)}
    epoch_images = {}
    with Progress(console=_stderr) as progress:
        task = progress.add_task("", total=(turns + 1) * len(windows))
        for recipe in RECIPES:
            order = random.Random(SEED)  # noqa: S311 - an order, no secret
            dataset = load(recipe, data_root, FOLDER)
            epoch_images[recipe] = len(dataset.train)
            trainers = {
                variant: Trainer(variant, dataset, device.torch_device)
                for variant in windows
                if variant.recipe == recipe
            }
            for variant, trainer in trainers.items():
                progress.update(task, description=f"warming {recipe}: {variant.name}")
                trainer.choose_steps(window_s)
                progress.advance(task)
            for turn in range(turns):
                for variant in order.sample(list(trainers), len(trainers)):
                    progress.update(task, description=f"turn {turn + 1}, {recipe}: {variant.name}")
                    loads.append(os.getloadavg()[0])
                    windows[variant].append(trainers[variant].run())
                    progress.advance(task)
    return windows, epoch_images


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-training", description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--races", type=int, default=RACES, help="runs to 99.0 %% of each side")
    parser.add_argument("--turns", type=int, default=TURNS, help="windows of each variant")
    parser.add_argument("--window-s", type=float, default=WINDOW_S, help="two steps at least, however long")
    parser.add_argument("--write", type=Path, help="a Markdown file whose table is replaced")
    parser.add_argument("--json", action="store_true", help="every turn as one JSON object on stdout")
    return parser.parse_args()


def _cifar10(data_root: Path) -> Path:
    """The folder that holds CIFAR-10 as training reads it, unpacked where it comes packed."""
    packed = data_root / "cifar10" / "unpack.py"
    if not packed.exists():
        return data_root  # training says what it looks for
    if not (FOLDER / "cifar10.npz").exists():
        subprocess.run([sys.executable, packed, FOLDER], check=True, stdout=sys.stderr)
    return FOLDER


def _check_data(data_root: Path, cifar: Path) -> None:
    """End now, and not after minutes, where something is missing."""
    for name, folder in (("lenet5-mnist", data_root), (RECIPES[0], cifar)):
        recipe = resolve(name)
        try:
            load_unchecked(recipe.data, recipe.geometry, folder)
        except LenserveError as error:
            raise SystemExit(
                "bench-training needs MNIST and CIFAR-10 below --data-root (of make: DATA): "
                f"MNIST/raw/, and cifar10/unpack.py or cifar10.npz. {error}"
            ) from error


def _circumstances(options: argparse.Namespace, device: Device, loads: list[float]) -> str:
    return (
        f"Medians [lowest, highest]: of {options.races} races, and of {options.turns} windows of about "
        f"{options.window_s:g} s; order shuffled, seed {SEED}. {device.machine}, torch {torch.__version__}. "
        f"Load average: {statistics.median(loads):.1f} [{min(loads):.1f}, {max(loads):.1f}]."
    )


if __name__ == "__main__":
    main()
