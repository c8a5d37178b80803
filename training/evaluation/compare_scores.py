"""Compares probabilities with the figures that a bundle states. Does no I/O."""

from collections.abc import Iterator

import numpy as np

from serving.bundle import Evaluation
from serving.bundle.measures import ECE_BINS, expected_calibration_error, wilson_interval
from training.data.splits import Labels
from training.evaluation.gates import Check
from training.evaluation.onnx_session import Floats


def compare_scores(
    name: str, probabilities: Floats, truth: Labels, published: Evaluation, noise: float
) -> Iterator[Check]:
    """Compare images, correct ones, accuracy and calibration error.

    Args:
        name: of the file that gave the probabilities.
        probabilities: (N, K) on the test split.
        truth: (N,) index of the label.
        published: what the manifest states.
        noise: how far a probability may move from machine to machine.
    """
    ties, edges = _near_ties(probabilities, noise), _near_edges(probabilities, noise)
    correct = int((probabilities.argmax(axis=1) == truth).sum())
    explained = f" ({ties} images within rounding of a tie)" if ties and correct != published.correct else ""
    yield _compare(
        f"test images of {name}",
        f"{len(truth):,}",
        f"{published.images:,}",
        passed=len(truth) == published.images,
    )
    yield _compare(
        f"correct test images of {name}",
        f"{correct:,}{explained}",
        f"{published.correct:,}",
        passed=abs(correct - published.correct) <= ties,
    )
    stated, expected = published.accuracy, wilson_interval(published.correct, published.images)
    yield _compare(
        f"test accuracy of {name}",
        f"{expected.value:.4f} ({expected.low:.4f} to {expected.high:.4f})",
        f"{stated.value:.4f} ({stated.low:.4f} to {stated.high:.4f})",
        passed=np.allclose([*expected.model_dump().values()], [*stated.model_dump().values()], atol=1e-9),
    )
    ece = expected_calibration_error(probabilities, truth)
    yield _compare(
        f"calibration error of {name}",
        f"{ece:.5f}",
        f"{published.ece:.5f}",
        passed=abs(ece - published.ece) <= noise + 2 * (ties + edges) / len(truth),
    )


def compare_labels(name: str, found: Floats, exported: Floats, published: float, noise: float) -> Check:
    """Compare the share of images that get the label of the exported file.

    Args:
        name: of the file in another precision.
        found: (N, K) its probabilities.
        exported: (N, K) those of the exported file.
        published: what the manifest states.
        noise: as for `compare_scores`.
    """
    same = float((exported.argmax(axis=1) == found.argmax(axis=1)).mean())
    passed = abs(same - published) <= _near_ties(found, noise) / len(found) + 1e-9
    return _compare(f"same labels of {name}", f"{same:.2%}", f"{published:.2%}", passed=passed)


def _compare(name: str, found: str, published: str, *, passed: bool) -> Check:
    detail = found if found == published else f"{found}, published {published}"
    return Check(name=name, passed=passed, detail=detail)


def _near_ties(probabilities: Floats, noise: float) -> int:
    """How many images may get another label if each probability moves by the noise."""
    highest = np.sort(probabilities, axis=1)[:, -2:]  # (N, 2)
    return int((highest[:, 1] - highest[:, 0] <= 2 * noise).sum())


def _near_edges(probabilities: Floats, noise: float) -> int:
    """How many images may move to another bin of the calibration error."""
    place = probabilities.max(axis=1) * ECE_BINS  # (N,)
    edge = np.rint(place)  # (N,)
    return int(((np.abs(place - edge) <= noise * ECE_BINS) & (edge < ECE_BINS)).sum())
