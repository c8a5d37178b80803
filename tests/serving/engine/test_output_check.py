"""Outputs that cannot be probabilities are errors."""

import numpy as np
import pytest

from serving.bundle.images import Pixels
from serving.engine.base import Floats, Output
from serving.engine.output_check import checked, sums_to_one
from serving.errors import InvalidOutput

GOOD = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)


def _run(probabilities: Floats, *, sums: bool = True) -> Output:
    def run(_images: Pixels) -> Output:
        return Output(probabilities, probabilities)

    return checked(run, expects_one=sums)(np.zeros((len(probabilities), 1, 1, 1), np.uint8))


@pytest.mark.parametrize("count", [1, 3])
def test_probabilities_pass_unchanged(count: int) -> None:
    """One image or several."""
    assert _run(GOOD[:count]).probabilities.base is GOOD


def test_rounded_probabilities_pass() -> None:
    """A thousand labels in FP16 do not sum to one exactly."""
    logits = np.random.default_rng(0).normal(size=(32, 1000))
    rows = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    assert _run(rows)
    assert _run(rows[:1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "are NaN or infinite"),
        (np.inf, "are NaN or infinite"),
        (0.75, "sum to 1.25, not to 1"),
        (0.0, "sum to 0.5, not to 1"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_one_wrong_row_is_an_error(value: float, message: str, count: int) -> None:
    """Among good ones too."""
    rows = GOOD[1:2].repeat(count, axis=0)
    rows[-1, 0] = value
    with pytest.raises(InvalidOutput, match=message):
        _run(rows)


def test_a_network_whose_golden_examples_do_not_sum_to_one_must_only_be_finite() -> None:
    """Its outputs are what was published."""
    assert sums_to_one(GOOD)
    assert not sums_to_one(GOOD * 2)
    assert _run(GOOD * 2, sums=False)
    with pytest.raises(InvalidOutput):
        _run(GOOD * np.float32(np.nan), sums=False)
