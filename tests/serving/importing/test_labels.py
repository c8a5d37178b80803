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
        ("windows.txt", b"\xef\xbb\xbfcat\r\ndog\r\nb\xc3\xa4r\r\n"),
        ("powershell.txt", "\ufeffcat\r\ndog\r\nbär\r\n".encode("utf-16-le")),
        ("spaced.txt", b"\n cat \n\ndog\t\nb\xc3\xa4r\n\n\n"),
        ("list.json", '["cat", "dog", "bär"]'.encode()),
        ("index.json", '{"1": "dog", "0": "cat", "2": "bär"}'.encode()),
        (
            "keras.json",
            '{"0": ["n02121808", "cat"], "1": ["n02084071", "dog"], "2": ["n02131653", "bär"]}'.encode(),
        ),
    ],
)
def test_labels_are_read(name: str, content: bytes, tmp_path: Path) -> None:
    """Text of any editor, with blank lines, and JSON as lists or by index."""
    path = tmp_path / name
    path.write_bytes(content)
    assert read_labels(path) == ("cat", "dog", "bär")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("latin.txt", b"cat\nb\xe4r\n", "is not UTF-8 (byte 5): save it as a text file in UTF-8"),
        ("broken.json", b"[", "is not JSON: "),
        ("nested.json", b'{"0": {"name": "cat"}}', "is not a list of labels: write "),
        ("gap.json", b'{"0": "cat", "2": "dog"}', "is not a list of labels: write "),
        (
            "twice.txt",
            b"crane\ndog\ncrane\n",
            "labels must be distinct, but 'crane' is label 0 and 2: rename one of each",
        ),
        (
            "often.txt",
            b"a\na\nb\nb\nc\nc\nd\nd\n",
            "but 'a' is label 0 and 1, 'b' is label 2 and 3, 'c' is label 4 and 5, and 1 more: rename",
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    """It names the file and the remedy."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_labels(path)
    assert str(refused.value).startswith(f"--labels {path}")
    assert reason in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the reason of the system."""
    with pytest.raises(UsageError, match=r"--labels .*none\.txt cannot be read: No such file or directory"):
        read_labels(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("classes", "hint"),
    [
        (1001, "has 1,000 labels, output 'logits' has 1,001 classes: if class 0 is the background"),
        (10, "has 1,000 labels, output 'logits' has 10 classes: name the labels in the order of the output"),
    ],
)
def test_a_wrong_count_says_both_numbers(classes: int, hint: str) -> None:
    """One more class than labels is TensorFlow's background."""
    labels = tuple(map(str, range(1000)))
    check_count(labels, 1000, "logits", "labels.txt")
    with pytest.raises(UsageError) as refused:
        check_count(labels, classes, "logits", "labels.txt")
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({"names": "{0: 'cat', 1: \"dog's\"}"}, ("cat", "dog's")),
        ({"names": "['cat', 'dog']"}, ("cat", "dog")),
        ({"id2label": json.dumps({"0": "cat", "1": "dog"})}, ("cat", "dog")),
        ({"classes": '["cat", "dog"]'}, ("cat", "dog")),
        ({"names": "cat, dog"}, None),
        ({"names": "{0: 'cat', 1: 'cat'}"}, None),
        ({"names": "__import__('os').system('true')"}, None),
        ({"names": "[" * 100_000}, None),
        ({}, None),
    ],
)
def test_labels_in_metadata(metadata: dict[str, str], labels: tuple[str, ...] | None) -> None:
    """Ultralytics writes Python, others JSON. Nothing is executed, and nonsense is ignored."""
    assert labels_in(metadata) == labels
