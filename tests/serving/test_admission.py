"""The door."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Admission
from serving.errors import Overloaded


def test_the_limit_is_exact_and_both_numbers_are_told() -> None:
    """What just fits is let in; one more image is refused with what is inside, what came and the limit."""
    admission = Admission(10)
    with admission.permit(7), admission.permit(3):
        assert admission.pending == 10
        with (
            pytest.raises(Overloaded, match=r"^10 images are pending, 1 more would pass the limit of 10$"),
            admission.permit(1),
        ):
            pytest.fail("there is no room")
        assert admission.pending == 10
    assert admission.pending == 0


def test_a_failure_gives_its_places_back() -> None:
    """Whatever ends the work, its places are free again."""
    admission = Admission(2)
    with pytest.raises(ZeroDivisionError), admission.permit(2):
        raise ZeroDivisionError
    with admission.permit(2):
        assert admission.pending == 2


@given(limit=st.integers(1, 20), sizes=st.lists(st.integers(1, 8), max_size=20))
def test_pending_is_the_sum_of_what_was_let_in_and_never_passes_the_limit(
    limit: int, sizes: list[int]
) -> None:
    """A refused request takes no place, and a smaller one behind it still gets in."""
    admission = Admission(limit)
    permits, inside = [], 0
    for size in sizes:
        permit = admission.permit(size)
        try:
            permit.__enter__()
        except Overloaded:
            assert inside + size > limit
        else:
            permits.append(permit)
            inside += size
        assert admission.pending == inside <= limit
    for permit in permits:
        permit.__exit__(None, None, None)
    assert admission.pending == 0
