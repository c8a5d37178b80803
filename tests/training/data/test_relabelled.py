"""Images whose labels have changed since an earlier version."""

import pytest

from training.data.relabelled import find_relabelled, one_label_each

EARLIER = {number: "cat" if number < 40 else "dog" for number in range(100)}


def test_exchanged_labels_are_counted_by_pair() -> None:
    """The most frequent first; images that only one version knows do not count."""
    now = {number: "dog" if label == "cat" else "cat" for number, label in EARLIER.items()} | {200: "cat"}
    found = find_relabelled(EARLIER, now)
    assert str(found) == (
        "100 of 100 known images have another label: 'dog' is now 'cat' (60), 'cat' is now 'dog' (40)"
    )
    assert found.largest_share(5) == 1.0


def test_equal_labels_have_no_share() -> None:
    """Neither have two versions without common images."""
    same, apart = find_relabelled(EARLIER, EARLIER), find_relabelled(EARLIER, {200: "cat"})
    assert (str(same), same.largest_share(5)) == ("none of 100 known images has another label", 0.0)
    assert (apart.images, apart.largest_share(5)) == (0, 0.0)


@pytest.mark.parametrize(("corrected", "share"), [(4, 0.0), (5, 5 / 40), (20, 0.5)])
def test_the_share_is_that_of_the_label_which_lost_most(corrected: int, share: float) -> None:
    """A few corrections are no large share, also of a small label."""
    found = find_relabelled(EARLIER, EARLIER | dict.fromkeys(range(corrected), "bird"))
    assert found.largest_share(5) == share


def test_many_small_labels_count_together() -> None:
    """Each of ten labels lost three of its ten images."""
    earlier = {number: f"label {number // 10}" for number in range(100)}
    now = {number: label if number % 10 > 2 else "other" for number, label in earlier.items()}
    found = find_relabelled(earlier, now)
    assert found.largest_share(5) == 0.3
    assert str(found).endswith("'label 3' is now 'other' (3) and 6 more")


def test_an_image_with_two_labels_has_none() -> None:
    """Which of them counts cannot be known."""
    assert one_label_each([(1, "a"), (2, "b"), (1, "b"), (2, "b"), (1, "a")]) == {2: "b"}
