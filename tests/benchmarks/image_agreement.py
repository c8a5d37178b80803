"""Do networks see the same through our image path as through Pillow? Pixels, predictions, accuracy."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image
from serving.bundle.geometry import crop_and_size
from tests.benchmarks.squeezenet import SqueezeNet, class_indices

LIMITS = ImageLimits()

# ImageNet's usual evaluation: the middle 7/8 of the shorter side.
EVALUATION = Geometry(height=224, width=224, channels=3, fit="crop", crop_fraction=0.875)

# As many of each class of X-rays; more would only take longer.
MOST_OF_A_CLASS = 150


@dataclass(frozen=True, slots=True)
class Agreement:
    """One set of images through both paths."""

    images: int
    decoded_to_the_bit: int
    mean_difference: float  # levels
    max_difference: int  # levels
    same_top_1: int
    pillow_correct: int
    our_correct: int


ImagePath = Callable[[bytes, Geometry], np.ndarray]


def by_pillow(encoded: bytes, geometry: Geometry) -> np.ndarray:
    """The reference: Pillow decodes, turns, converts and resizes."""
    with Image.open(io.BytesIO(encoded)) as image:
        coloured = ImageOps.exif_transpose(image).convert({1: "L", 3: "RGB"}[geometry.channels])
    box, size = crop_and_size(coloured.size, geometry)
    filtering = Image.Resampling[geometry.interpolation.upper()]
    return np.asarray(coloured.resize(size, filtering, box=box)).reshape(*size[::-1], geometry.channels)


def by_us(encoded: bytes, geometry: Geometry) -> np.ndarray:
    """What training and the server do."""
    return apply_geometry(decode_image(encoded, LIMITS), geometry)


def imagenet_agreement(data_root: Path, network: SqueezeNet) -> Agreement:
    """100 photographs of 100 classes, by the network's own 1,000 outputs."""
    files = sorted((data_root / "imagenet-sample").glob("*.JPEG"))
    indices = class_indices(data_root)
    labels = np.array([indices[file.name.split("_")[0]] for file in files])
    answers = [network.pooled(_pixels(files, path))[1].argmax(axis=1) for path in (by_pillow, by_us)]
    return _agreement(files, labels, *answers)


def folder_agreement(folder: Path, network: SqueezeNet) -> Agreement:
    """Images in class folders, by logistic regression on features, fitted on Pillow's pixels of `train`."""
    train, train_labels = _files(folder / "train")
    files, labels = _files(folder / "val")
    features, _ = network.pooled(_pixels(train, by_pillow))
    regression = LogisticRegression(max_iter=1000).fit(features, train_labels)
    answers = [regression.predict(network.pooled(_pixels(files, path))[0]) for path in (by_pillow, by_us)]
    return _agreement(files, labels, *answers)


def _files(folder: Path) -> tuple[list[Path], np.ndarray]:
    classes = [sorted(each.glob("*.*"))[:MOST_OF_A_CLASS] for each in sorted(folder.iterdir())]
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes])
    return [file for files in classes for file in files], labels


def _pixels(files: Sequence[Path], path: ImagePath) -> np.ndarray:
    return np.stack([path(file.read_bytes(), EVALUATION) for file in files])


def _agreement(files: Sequence[Path], labels: np.ndarray, pillow: np.ndarray, ours: np.ndarray) -> Agreement:
    pairs = zip(_pixels(files, by_pillow), _pixels(files, by_us), strict=True)
    differences = np.stack([np.abs(reference.astype(int) - pixels) for reference, pixels in pairs])
    return Agreement(
        images=len(files),
        decoded_to_the_bit=sum(_same_decoding(file.read_bytes()) for file in files),
        mean_difference=round(float(differences.mean()), 4),
        max_difference=int(differences.max()),
        same_top_1=int((pillow == ours).sum()),
        pillow_correct=int((pillow == labels).sum()),
        our_correct=int((ours == labels).sum()),
    )


def _same_decoding(encoded: bytes) -> bool:
    with Image.open(io.BytesIO(encoded)) as image:
        reference = np.asarray(ImageOps.exif_transpose(image))
    return np.array_equal(decode_image(encoded, LIMITS).squeeze(), reference)
