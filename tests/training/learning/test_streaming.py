"""Streamed images train the same network, in little memory."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.fake_recipe import FakeRecipe
from training.data.storage.disk_images import DiskImages
from training.errors import Interrupted
from training.run.job import Job, load_data, train_and_evaluate

COLOURS = ("red", "green", "blue")

# Loads and trains in a process of its own, few images and then many, and says by how much its memory rose
# between. What the network itself takes is in the first.
PROGRAM = """
import re, sys
from pathlib import Path
from rich.console import Console
from training.data import load
from training.devices.device import choose, prepare
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.learning.loop import train
from training.recipe import resolve

folder = Path(sys.argv[1])
recipe = resolve("lenet5-fake", sys.argv[2:])
device = choose("cpu")
prepare(device)

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^VmHWM:\\s+(\\d+) kB", status, re.MULTILINE)[1])

peaks = []
for number, name in enumerate(("few", "few", "few", "many")):  # freed memory is kept: it must settle first
    dataset, _ = load(recipe.data, recipe.geometry, folder / name, folder / "cache")
    train(
        recipe, dataset, device=device.torch_device, checkpoint_path=folder / f"{number}.pt",
        display=Display(Console(quiet=True)), interrupts=Interrupts(),
    )
    peaks.append(peak_bytes())
print(peaks[-1] - peaks[-2])
"""

SETTINGS = (
    "data.source=folder",
    "data.memory_limit_gib=0",
    "data.min_validation_images_per_class=1",
    "geometry.height=384",
    "geometry.width=384",
    "geometry.channels=3",
    "network.kernel_size=1",
    "network.maps=[2, 2]",
    "training.epochs=1",
    "training.batch_size=8",
)


def write_noise(root: Path, count: int) -> None:
    """Write small noise images, each class with more of its colour."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(COLOURS):
        (root / name).mkdir(parents=True)
        for number in range(count // len(COLOURS)):
            pixels = random.integers(0, 200, (16, 16, 3), dtype=np.uint8)
            pixels[:, :, channel] += 55
            Image.fromarray(pixels).save(root / name / f"{number:04}.png")


def test_a_streamed_run_publishes_the_same_file(tmp_path: Path, job: Job, fake_recipe: FakeRecipe) -> None:
    """With splits to make, an undecodable file and a leak: the same data and the same published bytes."""
    write_noise(tmp_path / "data", 360)
    (tmp_path / "data" / "red" / "text.png").write_text("no picture")
    for number in range(20):  # equal pixels in other bytes: they may come into another split
        copied = (tmp_path / "data" / "blue" / f"{number:04}.png").read_bytes()
        (tmp_path / "data" / "blue" / f"copy{number}.png").write_bytes(copied + b"more")
    mixing = ("training.epochs=3", "gates.max_ece=1.0", "augmentation.flip=random", "augmentation.mixup=0.2")
    written, digests, kinds = [], [], []
    for name, limit in (("whole", ()), ("streamed", ("data.memory_limit_gib=0",))):
        recipe = fake_recipe(
            "data.source=folder", "geometry.channels=3", *mixing, "variants.precisions=[]", *limit
        )
        here = replace(job, run_dir=tmp_path / name / "run", data_root=tmp_path / "data")
        assert train_and_evaluate(recipe, here).verdict == "published"
        written.append((here.run_dir / "model.onnx").read_bytes())
        dataset, report = load_data(recipe, here)
        assert report.removed["train"]
        digests.append((dataset.digest(), report))
        kinds.append({isinstance(split.images, DiskImages) for split in dataset.splits().values()})
    assert kinds == [{False}, {True}]
    assert digests[0] == digests[1]
    assert written[0] == written[1]


def test_streaming_takes_little_memory(tmp_path: Path) -> None:
    """Decoding, checking and training: 106 MB more of images take less than half of that in memory."""
    write_noise(tmp_path / "few", 180)
    write_noise(tmp_path / "many", 420)
    image_bytes = 384 * 384 * 3
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *SETTINGS]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < (420 - 180) * image_bytes / 2


def test_a_run_that_is_stopped_while_it_decodes_leaves_at_once(
    tmp_path: Path, job: Job, fake_recipe: FakeRecipe
) -> None:
    """The run reports that nothing was trained, and keeps no partial cache."""
    write_noise(tmp_path / "data", 90)
    recipe = fake_recipe("data.source=folder", "geometry.channels=3")
    here = replace(job, run_dir=tmp_path / "run", data_root=tmp_path / "data")
    here.interrupts.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped by SIGTERM: nothing has been trained yet"):
        load_data(recipe, here)
    assert [path.name for path in here.cache.iterdir()] == [".lock"]
