"""Labels from text files, JSON and metadata, and one sentence for what is wrong with them."""

import json
from pathlib import Path

import pytest

from serving.errors import UsageError
from serving.importing.labels import check_count, labels_in, read_labels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", b"cat\ndog\nb\xc3\xa4r\n"),
        ("unended.txt", b"cat\ndog\nb\xc3\xa4r"),
        ("windows.txt", b"\xef\xbb\xbfcat\r\ndog\r\nb\xc3\xa4r\r\n"),
        ("powershell.txt", "\ufeffcat\r\ndog\r\nbär\r\n".encode("utf-16-le")),
        ("old-mac.txt", b"cat\rdog\rb\xc3\xa4r\r"),
        ("spaced.txt", b" cat \n\tdog\t\nb\xc3\xa4r\n\n \n\t\n"),
        ("list.json", '["cat", "dog", "bär"]'.encode()),
        ("config.json", '{"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "bär"}}'.encode()),
        ("index.json", '{"1": "dog", "0": "cat", "2": "bär"}'.encode()),
        (
            "keras.json",
            '{"0": ["n02121808", "cat"], "1": ["n02084071", "dog"], "2": ["n02131653", "bär"]}'.encode(),
        ),
    ],
)
def test_labels_are_read(name: str, content: bytes, tmp_path: Path) -> None:
    """Text of any editor, with spaces around labels and blank lines at the end; JSON as lists or by index."""
    path = tmp_path / name
    path.write_bytes(content)
    assert read_labels(path) == ("cat", "dog", "bär")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("latin.txt", b"cat\nb\xe4r\n", " is not UTF-8 (byte 5): save it as a text file in UTF-8"),
        ("blank.txt", b"cat\n\ndog\n", ": line 2 is blank, and would be the label of a class: write the"),
        ("first.txt", b"\r\n\r\ncat\r\n", ": line 1 is blank, and would be the label of a class: write the"),
        ("spaces.txt", b"cat\n \t\ndog\n", ": line 2 is blank, and would be the label of a class: write the"),
        (
            "table.txt",
            b"cat\nn02084071\tdog\n",
            ": line 2 has a tab ('n02084071\\tdog'), as a table: keep only",
        ),
        (
            "control.txt",
            b"cat\ndo\x00g\n",
            ": line 2 has the character U+0000, which is not text ('do\\x00g'): rem",
        ),
        ("form-feed.txt", b"cat\fdog\n", ": line 1 has the character U+000C, which is not text ("),
        ("unicode.txt", "cat\u2028dog\n".encode(), ": line 1 has the character U+2028, which is not text ("),
        ("long.txt", b"cat\n" + b"x" * 1001, ": line 2 has 1,001 characters, the limit is 1,000: shorten it"),
        (
            "broken.json",
            b"[",
            " is not JSON (Expecting value: line 1 column 2 (char 1)): write a list such as ",
        ),
        ("nested.json", b'{"0": {"name": "cat"}}', " is not a list of labels: write a list such as "),
        ("rows.csv", b"0,cat\n1,dog\n", ": every line begins with its own number and ',': keep only the lab"),
        ("rows.txt", b"1: cat\n2: dog", ": every line begins with its own number and ':': keep only the lab"),
        ("numbers.json", b"[1, 2]", " has numbers: labels are text, in quotes: write a list such as "),
        (
            "gap.json",
            b'{"0": "a", "2": "b"}',
            " has 2 keys ('0', '2'), which are not the numbers 0 to 1: write a",
        ),
        (
            "ids.json",
            b'{"cat": 0, "dog": 1}',
            " has 2 keys ('cat', 'dog'), which are not the numbers 0 to 1: wr",
        ),
        (
            "blank.json",
            b'["cat", " ", "dog"]',
            ": label 1 is blank, and would be the label of a class: write the",
        ),
        (
            "half.json",
            b'["cat", "\\ud83d"]',
            ": label 1 has the character U+D83D, which is not text ('\\ud83d'): ",
        ),
        (
            "twice.txt",
            b"crane\ndog\ncrane\n",
            ": labels must be distinct, but 'crane' is line 1 and 3: rename one",
        ),
        (
            "twice.json",
            b'["a", "a"]',
            ": labels must be distinct, but 'a' is label 0 and 1: rename one of each",
        ),
        (
            "often.txt",
            b"a\na\nb\nb\nc\nc\nd\nd\n",
            ": labels must be distinct, but 'a' is line 1 and 2, 'b' is line 3 and 4, 'c' is line 5 and 6",
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    """It names the file, the line and the remedy."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_labels(path)
    assert str(refused.value).startswith(f"--labels {path}{reason}")
    assert str(refused.value).isprintable()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the reason of the system."""
    with pytest.raises(
        UsageError, match=r"--labels .*none\.txt cannot be read: No such file or directory; name a"
    ):
        read_labels(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("classes", "hint"),
    [
        (
            1001,
            "if class 0 is the background, as in many TensorFlow models, add a first line for it; otherwise ",
        ),
        (
            91,
            "if class 0 is the background, as in many TensorFlow models, add a first line for it; otherwise ",
        ),
        (11, ""),
    ],
)
def test_a_background_is_suggested_only_for_its_data_sets(classes: int, hint: str) -> None:
    """Of most networks, one label less than classes is a label that is missing."""
    labels = tuple(map(str, range(classes - 1)))
    check_count(labels, classes - 1, "logits", "labels.txt")
    with pytest.raises(UsageError) as refused:
        check_count(labels, classes, "logits", "labels.txt")
    assert str(refused.value) == (
        f"labels.txt has {classes - 1:,} labels, output 'logits' has {classes:,} classes: {hint}"
        "--labels takes one label for each class, in the order of the output"
    )


def test_a_wrong_count_says_both_numbers() -> None:
    """And what the file should have."""
    with pytest.raises(
        UsageError, match="has 1,000 labels, output 'logits' has 10 classes: --labels takes one"
    ):
        check_count(tuple(map(str, range(1000))), 10, "logits", "labels.txt")


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({"names": "{0: 'cat', 1: \"dog's\"}"}, ("cat", "dog's")),
        ({"names": "['cat', 'dog']"}, ("cat", "dog")),
        ({"id2label": json.dumps({"0": "cat", "1": "dog"})}, ("cat", "dog")),
        ({"classes": '["cat", "dog"]'}, ("cat", "dog")),
        ({"names": "cat, dog"}, None),
        ({"names": "['cat', '']"}, None),
        ({"names": '["cat", "\\ud83d"]'}, None),
        ({"names": "{0: 'cat', 1: 'cat'}"}, None),
        ({"names": "__import__('os').system('true')"}, None),
        ({"names": "[" * 100_000}, None),
        ({}, None),
    ],
)
def test_labels_in_metadata(metadata: dict[str, str], labels: tuple[str, ...] | None) -> None:
    """Ultralytics writes Python, others JSON. Nothing is executed, and nonsense is ignored."""
    assert labels_in(metadata) == labels


def test_labels_may_begin_with_numbers(tmp_path: Path) -> None:
    """If these are not the numbers of all lines, they belong to the labels."""
    path = tmp_path / "labels.txt"
    path.write_text("0, nothing\n5, some\n")
    assert read_labels(path) == ("0, nothing", "5, some")
