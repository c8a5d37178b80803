"""The loop that a PyTorch tutorial ends in, to be measured beside ours. Nothing of ours is in it.

It learns what the usual MNIST example learns, in the usual way: torchvision's data set, each image
transformed by itself, a DataLoader with batches of 64, two convolutions and two dense layers with dropout
(1,199,882 parameters), Adadelta at rate 1, times 0.7 after each epoch, no autocast.
"""

import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adadelta
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from tests.benchmarks.training.stopwatch import Stopwatch
from training.networks.torchvision_import import import_torchvision

BATCH_SIZE = 64
LOOKS_PER_EPOCH = 4  # at the test images, so that its goal is not noticed an epoch late
_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


def network() -> nn.Module:
    """(B, 1, 28, 28) float32, normalised -> (B, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


def unpack(data_root: Path, folder: Path) -> None:
    """Lay MNIST's files into a folder as torchvision reads them without fetching anything."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in _FILES:
        packed = data_root / "MNIST" / "raw" / f"{name}.gz"
        plain = packed.with_suffix("")
        (raw / name).write_bytes(
            gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
        )


def train(
    folder: Path, device: torch.device, *, seed: int, goal: float, most_epochs: int
) -> tuple[Stopwatch, float, int]:
    """Train until the test images are right to `goal`; looking at them is not counted.

    Returns: what the steps took, the accuracy (0..1) at the end, and how many images were trained on.
    """
    torch.manual_seed(seed)
    transforms, datasets = map(import_torchvision, ("torchvision.transforms", "torchvision.datasets"))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_set = datasets.MNIST(str(folder), train=True, transform=transform)
    loader = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True)
    test_set = list(
        DataLoader(datasets.MNIST(str(folder), train=False, transform=transform), batch_size=1000)
    )
    learner = network().to(device)
    optimizer = Adadelta(learner.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    watch, accuracy, images = Stopwatch(device), 0.0, 0
    for _ in range(most_epochs):
        batches = iter(loader)
        for _ in range(LOOKS_PER_EPOCH):
            with watch.running():
                images += _steps(learner, optimizer, batches, -(-len(loader) // LOOKS_PER_EPOCH), device)
            accuracy = _accuracy(learner, test_set, device)
            if accuracy >= goal:
                return watch, accuracy, images
        scheduler.step()
    return watch, accuracy, images


def _steps(
    learner: nn.Module,
    optimizer: Adadelta,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    device: torch.device,
) -> int:
    """Train on the next batches; returns how many images there were."""
    learner.train()
    images = 0
    for data, target in islice(batches, steps):
        data, target = data.to(device), target.to(device)  # (B, 1, 28, 28), (B,)  # noqa: PLW2901
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(learner(data), target)
        loss.backward()
        optimizer.step()
        images += len(target)
    return images


@torch.no_grad()
def _accuracy(learner: nn.Module, batches: list[list[Tensor]], device: torch.device) -> float:
    learner.eval()
    right = [(learner(data.to(device)).argmax(dim=1) == target.to(device)).sum() for data, target in batches]
    return float(sum(right)) / sum(len(target) for _, target in batches)
