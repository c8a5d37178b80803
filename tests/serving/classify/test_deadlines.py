"""When a cancelled call counts as late."""

import math
import time

import pytest

from serving.classify.deadlines import is_late


@pytest.mark.parametrize(
    ("left_s", "waited_s", "late"),
    [
        (-0.1, 1, True),
        (0.04, 0.0, True),  # on the way
        (0.1, 0.4, True),  # the last fifth
        (0.4, 0.1, False),
        (1.0, 29, False),  # at most half a second of it
        (0.9, 99.1, True),  # rounded up by 1 %
        (math.inf, 1, False),
    ],
)
def test_a_cancellation_near_the_deadline_is_late(*, left_s: float, waited_s: float, late: bool) -> None:
    """The client's timer runs ahead of the server's."""
    assert is_late(time.monotonic() + left_s, waited_s) == late
