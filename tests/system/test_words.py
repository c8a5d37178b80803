"""The word list of `make check` finds what it should, and nothing else."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "checks" / "words.py"

spec = importlib.util.spec_from_file_location("words", SCRIPT)
assert spec is not None
assert spec.loader is not None
words = importlib.util.module_from_spec(spec)
spec.loader.exec_module(words)


@pytest.mark.parametrize(
    "text",
    [
        "the repository x is no folder",
        "grpc-timeout '5x' is none",
        "weights cannot be had",
        "3 taken for 9 (94%)",
        "a folder, runs/.cache say; decoded anew",
        "Input should be less than 9",
        "a line that breaks is\n    no reason",
        "Ranks labels. Knows no gRPC.",
        "a thread of its own, for so many images",
    ],
)
def test_a_translated_phrase_is_found(text: str) -> None:
    """Each with better wording."""
    assert all(better for _, better, _ in words.matches(text))
    assert list(words.matches(text))


@pytest.mark.parametrize(
    "text",
    [
        "there is no model 'cats'",
        "the loss is no longer finite",
        "a batch is no larger than this",
        "There are none",
        "the message says which file is missing",
    ],
)
def test_plain_english_is_not(text: str) -> None:
    """`there is no` and comparisons."""
    assert not list(words.matches(text))


def test_places_are_lines_of_strings_and_comments(tmp_path: Path) -> None:
    """Adjacent strings and comment lines are read as one text; code is not read."""
    file = tmp_path / "module.py"
    file.write_text(
        '"""A module."""\n'
        "seat = 1  # a\n"
        "message = (\n"
        '    f"the repository {seat} is "\n'
        '    "no folder"\n'
        ")\n"
        "# the image\n"
        "# is none\n"
    )
    found = [
        (first + line, phrase) for first, text in words.texts(file) for line, _, phrase in words.matches(text)
    ]
    assert found == [(4, "is no folder"), (7, "is none")]
