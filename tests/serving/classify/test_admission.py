"""Admission control."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.classify.admission import Admission
from serving.errors import Overloaded


def test_the_limit_is_exact_and_the_message_has_all_numbers() -> None:
    """Images up to the limit are admitted; one more is rejected."""
    admission = Admission(10)
    admission.enter(7)
    admission.enter(3)
    with pytest.raises(
        Overloaded, match=r"^10 images are pending, 1 more would exceed the limit of 10: retry later$"
    ):
        admission.enter(1)
    assert admission.pending == 10


def test_check_rejects_only_if_no_image_would_be_admitted() -> None:
    """Its message has the pending images and the limit."""
    admission = Admission(2)
    admission.enter(1)
    admission.check()
    admission.enter(1)
    with pytest.raises(Overloaded, match=r"^2 images are pending, the limit is 2: retry later$"):
        admission.check()


@given(limit=st.integers(1, 20), sizes=st.lists(st.integers(1, 8), max_size=20))
def test_pending_is_the_sum_of_admitted_images_and_never_exceeds_the_limit(
    limit: int, sizes: list[int]
) -> None:
    """A rejected request takes no place, and a smaller one after it may be admitted."""
    admission = Admission(limit)
    admitted: list[int] = []
    for size in sizes:
        try:
            admission.enter(size)
        except Overloaded:
            assert sum(admitted) + size > limit
        else:
            admitted.append(size)
        assert admission.pending == sum(admitted) <= limit
    for size in admitted:
        admission.leave(size)
    assert admission.pending == 0
