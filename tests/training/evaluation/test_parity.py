"""When labels of the exported file count as changed."""

import numpy as np

from training.evaluation.parity import _changed_labels


def test_a_tie_that_is_broken_differently_is_not_a_change() -> None:
    """Two labels 1e-4 apart may change places where each may move by 1e-4; labels 1e-2 apart may not."""
    expected = np.array([[0.50005, 0.49995, 0.0], [0.505, 0.495, 0.0], [0.9, 0.1, 0.0]], np.float32)
    found = np.array([[0.49998, 0.50002, 0.0], [0.495, 0.505, 0.0], [0.9, 0.1, 0.0]], np.float32)
    assert _changed_labels(expected, found, 2e-4) == 1
    assert _changed_labels(expected, found, 2e-2) == 0
    assert _changed_labels(expected, expected, 0.0) == 0
