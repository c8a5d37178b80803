"""The door."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.classify.admission import Admission
from serving.errors import Overloaded


def test_the_limit_is_exact_and_both_numbers_are_told() -> None:
    """What just fits is let in; one more image is refused with what is inside, what came and the limit."""
    admission = Admission(10)
    admission.enter(7)
    admission.enter(3)
    with pytest.raises(Overloaded, match=r"^10 images are pending, 1 more would pass the limit of 10$"):
        admission.enter(1)
    assert admission.pending == 10


def test_check_refuses_only_where_not_even_one_image_is_taken() -> None:
    """With the images inside, and the limit."""
    admission = Admission(2)
    admission.enter(1)
    admission.check()
    admission.enter(1)
    with pytest.raises(Overloaded, match=r"^2 images are pending, the limit is 2$"):
        admission.check()


@given(limit=st.integers(1, 20), sizes=st.lists(st.integers(1, 8), max_size=20))
def test_pending_is_the_sum_of_what_was_let_in_and_never_passes_the_limit(
    limit: int, sizes: list[int]
) -> None:
    """A refused request takes no place, and a smaller one behind it still gets in."""
    admission = Admission(limit)
    inside: list[int] = []
    for size in sizes:
        try:
            admission.enter(size)
        except Overloaded:
            assert sum(inside) + size > limit
        else:
            inside.append(size)
        assert admission.pending == sum(inside) <= limit
    for size in inside:
        admission.leave(size)
    assert admission.pending == 0
