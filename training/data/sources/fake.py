"""Synthetic patterns, one per class, that any network learns in seconds. Only for testing."""

import numpy as np

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.data.splits import SourceData, Split
from training.data.storage.arrays import apply_geometry_to_all
from training.recipe import DataRecipe

_NOISE = 40.0  # grey levels of standard deviation


def load(geometry: Geometry, recipe: DataRecipe) -> SourceData:
    """Generate noisy images of a bright bar, whose angle is the class. Deterministic in data.split_seed.

    They are generated in the network's size, and cropped like the images that a server receives.
    """
    random = np.random.default_rng(recipe.split_seed)
    labels = np.repeat(np.arange(recipe.fake_classes), recipe.fake_images_per_class)
    images = np.stack([_bar(label / recipe.fake_classes, geometry, random) for label in labels])
    return SourceData(
        labels=tuple(f"pattern-{index}" for index in range(recipe.fake_classes)),
        train=Split(
            apply_geometry_to_all(images, geometry),
            labels.astype(np.int64),
            tuple(f"fake {i}" for i in range(len(labels))),
        ),
    )


def _bar(half_turns: float, geometry: Geometry, random: np.random.Generator) -> Pixels:
    angle = np.pi * half_turns
    rows, columns = np.mgrid[: geometry.height, : geometry.width]
    down = rows / geometry.height - 0.5 + random.uniform(-0.1, 0.1)
    right = columns / geometry.width - 0.5 + random.uniform(-0.1, 0.1)
    distance = np.abs(down * np.cos(angle) - right * np.sin(angle))  # from the bar's centre line
    bright = 200 * (distance < 0.12)  # noqa: PLR2004 - half the bar's thickness, as a fraction of the side
    noise = random.normal(0, _NOISE, (geometry.height, geometry.width, geometry.channels))
    image: Pixels = np.clip(bright[..., np.newaxis] + noise, 0, 255).astype(np.uint8)  # (H, W, C)
    return image
