"""Chooses the images that pictures show: right and wrong examples of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels
from training.data.labels import Labels
from training.data.storage.disk_images import Images

MAX_CLASSES = 10  # rows of a picture

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """An image with its prediction. Labels are indices."""

    image: Pixels  # (H, W, C)
    predicted: int
    probability: float  # of the predicted label
    truth: int | None = None  # None: not known

    def describe(self, labels: Sequence[str]) -> str:
        """Two lines: the true label if it is known, and the prediction with its probability."""
        predicted = f"{labels[self.predicted]} ({100 * self.probability:.0f} %)"
        return predicted if self.truth is None else f"true {labels[self.truth]}\n→ {predicted}"


def predicted_examples(images: Pixels, probabilities: Floats) -> list[Example]:
    """Examples of images whose true labels are not known.

    Args:
        images: (N, H, W, C).
        probabilities: (N, K).
    """
    return [
        Example(image, int(row.argmax()), float(row.max()))
        for image, row in zip(images, probabilities, strict=True)
    ]


def choose_examples(
    images: Images, truth: Labels, probabilities: Floats
) -> tuple[list[Example], list[Example]]:
    """Choose right and wrong examples of up to ten classes, those with the most mistakes if there are more.

    Args:
        images: (N, H, W, C).
        truth: (N,) their labels.
        probabilities: (N, K).

    Returns: of each class the first right examples, and the most confident mistakes; several if the classes
        are few. Right examples of other classes follow if there are fewer than ten.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)  # (N,)
    is_right = predicted == truth
    mistakes = np.bincount(truth[~is_right], minlength=probabilities.shape[1])
    present = np.unique(truth)
    classes = np.sort(present[np.argsort(-mistakes[present], kind="stable")][:MAX_CLASSES])
    per_class = max(1, 6 // len(classes))
    right: list[int] = []
    wrong: list[int] = []
    for label in classes:
        own = truth == label
        right += map(int, np.flatnonzero(own & is_right)[:per_class])
        missed = np.flatnonzero(own & ~is_right)
        wrong += map(int, missed[np.argsort(-confidence[missed], kind="stable")][:per_class])

    others = np.flatnonzero(is_right & ~np.isin(truth, classes))
    firsts = others[np.unique(truth[others], return_index=True)[1]]  # one of each other class
    right += map(int, firsts[: max(0, MAX_CLASSES - len(right))])

    def example(index: int) -> Example:
        return Example(
            np.asarray(images[index]),
            int(predicted[index]),
            float(confidence[index]),
            int(truth[index]),
        )

    return list(map(example, right)), list(map(example, wrong))
