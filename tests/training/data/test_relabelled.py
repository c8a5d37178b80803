"""Images whose labels have changed since an earlier version."""

import pytest

from training.data.relabelled import SEVERAL, find_relabelled, one_label_each

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
    """A few corrections do not count, also of a small label."""
    found = find_relabelled(EARLIER, EARLIER | dict.fromkeys(range(corrected), "dog"))
    assert found.largest_share(5) == share


def test_many_small_labels_count_together() -> None:
    """Each of ten labels lost three of its ten images."""
    earlier = {number: f"label {number // 10}" for number in range(100)}
    now = {n: f"label {(n // 10 + (n % 10 < 3)) % 10}" for n in earlier}
    found = find_relabelled(earlier, now)
    assert found.largest_share(5) == 0.3
    assert str(found).endswith("'label 3' is now 'label 4' (3) and 6 more")


def test_a_rare_label_that_is_swamped_counts_as_changed() -> None:
    """Few of the images with a frequent label are many for the one that they have now."""
    earlier = {number: "ok" if number < 1500 else "defect" for number in range(1560)}
    found = find_relabelled(earlier, earlier | dict.fromkeys(range(60), "defect"))
    assert found.largest_share(5) == 0.5


def test_all_images_of_a_small_label_count() -> None:
    """One image may be a correction."""
    earlier = {number: f"label {number // 4}" for number in range(400)} | {400: "alone"}
    assert find_relabelled(earlier, earlier | dict.fromkeys(range(4), "label 1")).largest_share(5) == 1.0
    assert find_relabelled(earlier, earlier | dict.fromkeys(range(3), "label 1")).largest_share(5) == 0.0
    assert find_relabelled(earlier, earlier | {400: "label 1"}).largest_share(5) == 0.0


def test_an_image_with_several_labels_is_changed_if_it_had_one() -> None:
    """If it had several before, it cannot be known; a copy under another label does not hide a change."""
    labels = [(1, "a"), (2, "b"), (1, "b"), (2, "b"), (1, "a")]
    assert one_label_each(labels) == {1: SEVERAL, 2: "b"}
    earlier = one_label_each((number, "a") for number in range(10))
    now = one_label_each([*((number, "b") for number in range(10)), *((number, "c") for number in range(10))])
    found = find_relabelled(earlier, now)
    assert str(found) == "10 of 10 known images have another label: 'a' is now several labels (10)"
    assert found.largest_share(5) == 1.0
    assert find_relabelled(now, earlier).images == 0


def test_five_stray_copies_do_not_stop_thousands() -> None:
    """Of images that have several labels now, only the share of all and of their old label counts."""
    earlier = dict.fromkeys(range(1000), "a")
    assert find_relabelled(earlier, earlier | dict.fromkeys(range(5), SEVERAL)).largest_share(5) == 0.005


def test_forms_of_one_name_are_one_label() -> None:
    """An accent as a character of its own, as macOS writes it."""
    assert find_relabelled({1: "caf\u00e9"}, {1: "cafe\u0301"}).changes == 0
