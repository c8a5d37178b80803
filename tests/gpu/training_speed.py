"""How fast networks learn here: cifar10-fast on real images to its end, then each speed measure alone."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from tests.benchmarks.training.speed import Trainer, Variant
from tests.gpu import machine
from tests.gpu.rows import PartOptions, Rows
from training import data
from training.data import Dataset
from training.data.splits import Split
from training.devices.device import Device, choose, prepare
from training.learning.learn import LearnContext, learn
from training.learning.steps import measure as measure_network
from training.recipe import Recipe, resolve
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.run_folder import RunFolder

_RECORD = "cifar10-fast"
_GOAL = 0.94  # of the hold-out
_GOAL_S = 2.6

_SIDE = 32  # pixels of CIFAR-10
_HELD_OUT = 500
_WINDOWS = 3


def measure(options: PartOptions, rows: Rows) -> None:
    """First what was promised: the time of cifar10-fast to its end. Then where it comes from."""
    device = choose(options.device)
    prepare(device)
    with rows.trying(_RECORD):
        _records(options, device, rows)
    for recipe, smaller in options.sizes.recipes:
        dataset = _made_up(options.sizes.epoch_images)
        for variant in _variants(compiled=options.sizes.compiles and recipe == _RECORD):
            with rows.trying(f"{recipe}, {variant[0]}"):
                _measure(recipe, smaller, variant, dataset, options, rows)


def _records(options: PartOptions, device: Device, rows: Rows) -> None:
    """Train to the end with several seeds."""
    sizes = options.sizes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = _cifar10(options, folder)
        if real is None:
            _write_made_up(folder / "cifar10.npz", sizes.epoch_images)
        recipe = resolve(_RECORD, sizes.record_overrides)
        began_s = time.monotonic()
        dataset, _ = data.load(recipe.data, recipe.geometry, real or folder, folder)
        seconds = time.monotonic() - began_s
        rows.add("CIFAR-10 read and checked", f"{len(dataset.train):,} images in {seconds:.1f} s")
        images = "real images" if real else "made-up images"
        _record(images, dataset, device, options, rows)


def _record(images: str, dataset: Dataset, device: Device, options: PartOptions, rows: Rows) -> None:
    """The first run makes kernels, and does not count."""
    overrides = options.sizes.record_overrides
    what = f"{_RECORD} with {', '.join(overrides)}"
    began_s = time.monotonic()
    _run(resolve(_RECORD, (*overrides, "training.epochs=1")), dataset, device)
    rows.add(f"{what}: first epoch, with one-time setup", f"{time.monotonic() - began_s:.1f} s")
    with machine.watching(options.device) as watched:
        runs = [
            _run(resolve(_RECORD, (*overrides, f"training.seed={seed}")), dataset, device)
            for seed in range(1, options.sizes.records + 1)
        ]
    training_s, whole_s, held_out, tested = (np.array(each) for each in zip(*runs, strict=True))
    reached = held_out.mean() >= _GOAL and np.median(training_s) < _GOAL_S
    aim = f"; aim {_GOAL:.0%} in {_GOAL_S} s: {'met' if reached else 'not met'}"
    low, high = 100 * held_out.min(), 100 * held_out.max()
    rows.add(
        f"{what}, {len(runs)} runs on {images}",
        f"training {_spread(training_s)} s, with validation and checkpoints {_spread(whole_s)} s, "
        f"hold-out {100 * held_out.mean():.2f} % [{low:.2f}, {high:.2f}], "
        f"{len(dataset.test)} test images {100 * tested.mean():.2f} %, "
        f"{watched}{aim if images == 'real images' else ''}",
        training_s=training_s.tolist(),
        whole_s=whole_s.tolist(),
        hold_out=held_out.tolist(),
        test=tested.tolist(),
    )


def _run(recipe: Recipe, dataset: Dataset, device: Device) -> tuple[float, float, float, float]:
    """Seconds of training, seconds of all, accuracy on the hold-out and on the test images."""
    display = Display(Console(stderr=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began_s = time.perf_counter()
        learned = learn(
            recipe, dataset, LearnContext(RunFolder(folder), folder, device, display, Interrupts())
        )
        whole_s = time.perf_counter() - began_s
    network = learned.network.to(device.torch_device)
    held_out, test = (
        measure_network(
            network,
            torch.from_numpy(split.images[:]).to(device.torch_device),
            torch.from_numpy(split.labels).to(device.torch_device),
        )[1]
        for split in (dataset.validation, dataset.test)
    )
    return sum((record.seconds for record in learned.history), 0.0), whole_s, held_out, test


def _measure(  # noqa: PLR0917 - what is trained, and where the result goes
    recipe: str,
    smaller: tuple[str, ...],
    variant: tuple[str, tuple[str, ...], bool],
    dataset: Dataset,
    options: PartOptions,
    rows: Rows,
) -> None:
    """Images/s with one thing changed, in a few windows once it is warm."""
    name, overrides, reproducible = variant
    device = choose(options.device, kernels="reproducible" if reproducible else None)
    prepare(device)
    began_s = time.monotonic()
    trainer = Trainer(Variant(recipe, name, (*smaller, *overrides)), dataset, device.torch_device)
    for _ in range(2):  # plain steps and the recorded one would look like slow steps
        trainer.run()
    trainer.choose_steps(options.sizes.training_window_s)
    warm_s = time.monotonic() - began_s
    with machine.watching(options.device) as watched:
        windows = [trainer.run() for _ in range(_WINDOWS)]
    rates = [window.images / window.wall_s for window in windows]
    rows.add(
        f"{recipe}, {name}",
        f"{statistics.median(rates):,.0f} images/s [{min(rates):,.0f}, {max(rates):,.0f}], {watched}, "
        f"warm after {warm_s:.1f} s",
        images_per_s=rates,
        utilisation=watched.utilisation,
        warm_s=warm_s,
    )


def _variants(*, compiled: bool) -> list[tuple[str, tuple[str, ...], bool]]:
    """Name, overrides, and whether kernels are reproducible."""
    half = "training.precision=bfloat16"
    eager = "training.cuda_graphs=false"
    variants = [
        ("as the recipe is", (), False),
        ("without CUDA graphs", (eager,), False),
        ("with reproducible kernels", (), True),
        ("without channels_last", ("training.channels_last=false",), False),
        ("without augmentation", ("augmentation.max_shift_px=0", "augmentation.flip=none"), False),
        ("with bfloat16", (half,), False),
        ("with bfloat16, without CUDA graphs", (half, eager), False),
    ]
    if compiled:  # takes its time, and the runs above have paid most of it
        variants.append(("with bfloat16 and compile", (half, "training.compile=true"), False))
    return variants


def _spread(values: np.ndarray) -> str:
    return f"{np.median(values):.2f} [{values.min():.2f}, {values.max():.2f}]"


def _cifar10(options: PartOptions, folder: Path) -> Path | None:
    """The folder of the real images, unpacked where they come packed; none where a rehearsal goes without."""
    root = options.data_root
    if root is None or options.device == "cpu":
        return None
    packed = root / "cifar10" / "unpack.py"
    if not (root / "cifar10.npz").exists() and packed.exists():
        subprocess.run([sys.executable, str(packed), str(folder)], check=True)
        return folder
    return root if (root / "cifar10.npz").exists() else None


def _made_up(count: int) -> Dataset:
    """Noise of the right shape: what is measured is time."""
    return Dataset(tuple("0123456789"), _noise(count), _noise(_HELD_OUT), _noise(_HELD_OUT))


def _noise(count: int) -> Split:
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, _SIDE, _SIDE, 3), dtype=np.uint8)  # (N, H, W, C)
    return Split(images, np.arange(count) % 10, tuple(map(str, range(count))))


def _write_made_up(file: Path, count: int) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, images in (("train", count), ("test", _HELD_OUT)):
        noise = _noise(images)
        arrays |= {f"{split}_images": noise.images[:], f"{split}_labels": noise.labels[:, np.newaxis]}
    np.savez(file, **arrays)  # type: ignore[arg-type]
