"""Batches depend on epoch and step alone, and processes share their rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.batches import Batches
from training.data.splits import Split
from training.data.storage.disk_images import DiskImages
from training.devices.process_group import SINGLE_PROCESS, ProcessGroup
from training.recipe import resolve

AUGMENTED = ("augmentation.max_shift_px=2", "augmentation.flip=random", "augmentation.contrast=0.2")


def split(images: int = 50) -> Split:
    """Random images of four classes, the first of them frequent."""
    random = np.random.default_rng(0)
    labels = np.minimum(np.arange(images) // 8, 3).astype(np.int64)
    pixels = random.integers(0, 256, (images, 28, 28, 1), dtype=np.uint8)
    return Split(pixels, labels, tuple(map(str, range(images))))


def batches(*overrides: str, group: ProcessGroup = SINGLE_PROCESS, of: Split | None = None) -> Batches:
    """The batches of a recipe with batch size 10."""
    recipe = resolve("lenet5-fake", ["training.batch_size=10", *overrides])
    return Batches(recipe, of or split(), 4, torch.device("cpu"), group)


def test_an_epoch_shows_each_image_once() -> None:
    """Five batches of ten hold all fifty images, in a new order each epoch."""
    made = batches()
    assert made.steps == 5
    seen = torch.cat([made.take(0, step)[0] for step in range(5)])
    assert sorted(map(bytes, seen.numpy())) == sorted(map(bytes, split().images))
    assert not torch.equal(made.take(1, 0)[0], seen[:10])


def test_a_batch_is_the_same_whenever_it_is_taken() -> None:
    """Nothing depends on the batches taken before it."""
    first, later = batches(*AUGMENTED), batches(*AUGMENTED)
    for step in range(3):
        later.take(4, step)
    images, targets = first.take(2, 3)
    again, same_targets = later.take(2, 3)
    assert torch.equal(images, again)
    assert torch.equal(targets, same_targets)


@pytest.mark.parametrize("mixing", [(), ("augmentation.mixup=1.0",), ("augmentation.cutmix=1.0",)])
def test_processes_take_the_rows_of_one_batch(mixing: tuple[str, ...]) -> None:
    """The rows of three processes together are the batch of one process."""
    whole, targets = batches(*AUGMENTED, *mixing).take(1, 2)
    parts = [batches(*AUGMENTED, *mixing, group=ProcessGroup(rank, 3)).take(1, 2) for rank in range(3)]
    assert [len(images) for images, _ in parts] == [3, 3, 4]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert torch.equal(torch.cat([labels for _, labels in parts]), targets)
    assert targets.shape == ((10, 4) if mixing else (10,))


def test_a_balanced_sampler_draws_rare_classes_more_often() -> None:
    """Classes of 8, 8, 8 and 26 images come about equally often."""
    made = batches("training.class_balance=sampler")
    labels = torch.cat([made.take(0, step)[1] for step in range(5)])
    assert sorted(torch.bincount(labels).tolist()) == [12, 12, 13, 13]


@pytest.mark.parametrize("mixing", [(), ("augmentation.mixup=1.0",)])
def test_images_on_disk_make_the_same_batches(mixing: tuple[str, ...], tmp_path: Path) -> None:
    """For one and for two processes, order, pixels and targets are the same as from memory."""
    whole = split()
    assert isinstance(whole.images, np.ndarray)
    np.save(tmp_path / "images.npy", whole.images)
    offset = (tmp_path / "images.npy").stat().st_size - whole.images.nbytes
    stored = DiskImages(tmp_path / "images.npy", offset, whole.images.shape)
    for group in (SINGLE_PROCESS, ProcessGroup(0, 2), ProcessGroup(1, 2)):
        here = batches(*AUGMENTED, *mixing, group=group)
        there = batches(*AUGMENTED, *mixing, group=group, of=replace(whole, images=stored))
        for step in range(5):
            assert all(map(torch.equal, here.take(1, step), there.take(1, step)))
