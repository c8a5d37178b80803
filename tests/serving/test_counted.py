"""Messages that count have the singular and the plural."""

import pytest

from serving.counted import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1234, "1,234 images")]
)
def test_one_is_singular(number: int, words: str) -> None:
    """Large numbers have separators."""
    assert counted(number, "image") == words


def test_a_plural_of_its_own_is_given() -> None:
    """Most words take an s."""
    assert counted(1, "class", "classes") == "1 class"
    assert counted(2, "class", "classes") == "2 classes"
