"""A version is proven when every batch size ran and the golden examples were reproduced."""

import numpy as np
import numpy.typing as npt
import pytest

from serving.bundle import Golden
from serving.bundle.images import Pixels
from serving.engine.base import Output
from serving.engine.proof import warm_and_prove
from serving.errors import ProofFailed


def test_a_good_network_passes_its_proof_and_every_size_is_warmed() -> None:
    """Each size runs once, then the golden images in parts of at most the largest."""
    engine = _Scripted(np.full((5, 2), 0.5))
    warm_and_prove(engine, _golden(5), tolerance=1e-3, sizes=(1, 2, 4))
    assert engine.sizes == [1, 2, 4, 4, 1]


def test_a_difference_beyond_the_tolerance_is_refused_with_both_numbers() -> None:
    """The difference and the tolerance."""
    engine = _Scripted(np.array([[0.5, 0.52]] * 3))
    with pytest.raises(ProofFailed, match=r"^golden probabilities differ by 0\.02, the tolerance is 0\.001$"):
        warm_and_prove(engine, _golden(3), tolerance=1e-3, sizes=(4,))


def test_a_difference_within_the_tolerance_passes() -> None:
    """Other hardware rounds differently."""
    warm_and_prove(_Scripted(np.full((3, 2), 0.5) + 5e-4), _golden(3), tolerance=1e-3, sizes=(4,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_probabilities_fail(value: float) -> None:
    """NaN compares false with every tolerance, so it is checked first."""
    probabilities = np.full((3, 2), 0.5)
    probabilities[1, 1] = value
    with pytest.raises(ProofFailed, match="1 of 3 golden examples have NaN or infinite probabilities"):
        warm_and_prove(_Scripted(probabilities), _golden(3), tolerance=0.1, sizes=(4,))


def test_another_label_within_the_tolerance_passes() -> None:
    """Each probability may change by the tolerance, so their difference by twice as much."""
    golden = Golden(_golden(1).images, np.array([[0.515, 0.485]], np.float32))
    swapped = np.array([[0.499, 0.501]], np.float32)
    warm_and_prove(_Scripted(swapped), golden, tolerance=0.02, sizes=(4,))


@pytest.mark.parametrize("classes", [1, 3])
def test_another_number_of_classes_is_refused_with_both_shapes(classes: int) -> None:
    """Also a single column, which would otherwise be compared with all of them."""
    message = rf"golden probabilities have shape \[3, 2\], the network's have \[3, {classes}\]"
    with pytest.raises(ProofFailed, match=message):
        warm_and_prove(_Scripted(np.full((3, classes), 0.5)), _golden(3), tolerance=0.1, sizes=(4,))


class _Scripted:
    """Returns given rows one after another, and records the batch sizes."""

    max_images_on_loop = 0

    def __init__(self, probabilities: npt.ArrayLike) -> None:
        self._probabilities = np.asarray(probabilities, np.float32)  # (G, K)
        self.sizes: list[int] = []

    def run(self, images: Pixels) -> Output:
        self.sizes.append(len(images))
        rows = self._probabilities[images[:, 0, 0, 0]]  # (N, K)
        return Output(rows, rows)


def _golden(count: int) -> Golden:
    """Images whose first sample is their index, each with probabilities 0.5 and 0.5."""
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = range(count)
    return Golden(images, np.full((count, 2), 0.5, np.float32))
