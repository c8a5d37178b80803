"""Images/s of a recipe with and without each of the measures that are there to make it faster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.benchmarks.training.stopwatch import Stopwatch
from training import data
from training.data import Dataset
from training.data.batches import Batches
from training.data.splits import Split
from training.devices.process_group import SINGLE_PROCESS
from training.learning.learner import Learner
from training.learning.schedule import learning_rate
from training.networks import build
from training.networks.torchvision_import import import_torchvision
from training.recipe import Recipe, resolve

RECIPES = ("alexnet-cifar10", "cifar10-fast")
SHIPPED = "as the recipe is"
_WARM_STEPS = 2
_FEWEST_STEPS = 2


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe with one thing changed."""

    recipe: str
    name: str
    overrides: tuple[str, ...] = ()
    workers: int | None = None  # of a DataLoader that makes image by image; none: batches in memory


def variants(cores: int) -> list[Variant]:
    """All that are measured, by recipe; the first of each is the recipe itself.

    Args:
        cores: of this machine: so many workers the DataLoader has where it has some.
    """
    changes = (
        (SHIPPED, (), None),
        ("images one by one, no worker", (), 0),
        (f"images one by one, {cores} workers", (), cores),
        ("without `channels_last`", ("training.channels_last=false",), None),
        ("with `precision=bfloat16`", ("training.precision=bfloat16",), None),
        ("with `compile`", ("training.compile=true",), None),
    )
    return [Variant(recipe, name, *rest) for recipe in RECIPES for name, *rest in changes]


@dataclass(frozen=True, slots=True)
class Window:
    """Some steps that were timed."""

    wall_s: float
    cpu_s: float
    images: int


class Trainer:
    """A variant in the midst of training: a class because it goes on in every turn."""

    def __init__(self, variant: Variant, dataset: Dataset, device: torch.device) -> None:
        self.recipe = resolve(variant.recipe, variant.overrides)
        self.epoch_images = len(dataset.train)
        torch.manual_seed(self.recipe.training.seed)
        network = build(self.recipe.network, self.recipe.geometry, len(dataset.labels))
        batches = Batches(self.recipe, dataset.train, len(dataset.labels), device, SINGLE_PROCESS)
        self._learner = Learner(self.recipe, network, batches.images, batches.labels, SINGLE_PROCESS)
        self._steps_per_epoch, self._batch_size = batches.steps, batches.batch_size
        self._source = (
            _in_memory(batches)
            if variant.workers is None
            else _one_by_one(self.recipe, dataset.train, variant.workers)
        )
        self._device = device
        self._done = 0
        self.steps = _FEWEST_STEPS  # of a window

    def choose_steps(self, window_s: float) -> None:
        """Time a few steps, and choose how many fill a window; what compiles, compiles here."""
        window = self.run()
        self.steps = max(_FEWEST_STEPS, round(window_s * self.steps / window.wall_s))

    def run(self) -> Window:
        """A few steps to warm up, then those that are timed."""
        for _ in range(_WARM_STEPS):
            self._step()
        watch = Stopwatch(self._device)
        with watch.running():
            for _ in range(self.steps):
                self._step()
        return Window(watch.wall_s, watch.cpu_s, self.steps * self._batch_size)

    def _step(self) -> None:
        total = self.recipe.training.epochs * self._steps_per_epoch
        rate = learning_rate(self._done % total, total, self.recipe.training)
        self._done += 1
        images, targets = next(self._source)
        self._learner.step(
            images.to(self._device),
            targets.to(self._device),
            rate=rate,
            steps=self._done,
            batch=self._batch_size,
        )


def load(recipe_name: str, data_root: Path, cache: Path) -> Dataset:
    """The recipe's own data and splits."""
    recipe = resolve(recipe_name)
    return data.load(recipe.data, recipe.geometry, data_root, cache)[0]


def _in_memory(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as training makes them, without end."""
    step = 0
    while True:
        yield batches.take(*divmod(step, batches.steps))
        step += 1


def _one_by_one(recipe: Recipe, split: Split, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches as a tutorial makes them, without end: each image opened and transformed by itself."""
    pictures = _Pictures(recipe, split)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        pictures,  # type: ignore[arg-type] # a sequence is enough
        batch_size=recipe.training.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        prefetch_factor=1 if workers else None,  # nothing is made ahead while others have their turn
    )
    while True:
        for images, targets in loader:  # (B, C, H, W) uint8, (B,)
            yield images.permute(0, 2, 3, 1), targets


class _Pictures:
    """A data set as torchvision's are, with the transforms that come nearest to the recipe's augmentation."""

    def __init__(self, recipe: Recipe, split: Split) -> None:
        transforms = import_torchvision("torchvision.transforms")
        height, width, _ = recipe.geometry.shape
        augmentation = recipe.augmentation
        steps = [transforms.PILToTensor()]
        if augmentation.flip != "none":
            steps.insert(0, transforms.RandomHorizontalFlip())
        if augmentation.max_shift_px:
            steps.insert(
                0,
                transforms.RandomCrop(
                    (height, width), padding=augmentation.max_shift_px, padding_mode="reflect"
                ),
            )
        self._transform = transforms.Compose(steps)
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._split.images[index])
        return self._transform(image), int(self._split.labels[index])
