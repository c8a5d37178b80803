"""Labels of a foreign model: from a text or JSON file, or from what the model's file says of itself."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path

from serving.errors import UsageError
from serving.limited_files import read_once, why_unreadable
from serving.text_files import decode_text

_MAX_LABELS_BYTES = 16 * 2**20
_MAX_NAMED = 3  # faulty labels in one message

# Keys under which programs write labels: Ultralytics, Hugging Face, and those that many scripts use.
_METADATA_KEYS = ("names", "id2label", "labels", "classes", "class_names")


def read_labels(path: Path) -> tuple[str, ...]:
    """Read labels from a file: one in each line, or JSON, a list or index -> label.

    Raises:
        UsageError: the file cannot be read, or is not a list of distinct labels.
    """
    try:
        text = decode_text(read_once(path, _MAX_LABELS_BYTES))
    except OSError as error:
        raise UsageError(f"--labels {path} cannot be read: {why_unreadable(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--labels {path} is not UTF-8 (byte {error.start:,}): save it as a text file in UTF-8"
        ) from error
    if path.suffix.lower() == ".json":
        try:
            labels = _from_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--labels {path} is not JSON: {error}") from error
        if labels is None:
            raise UsageError(
                f'--labels {path} is not a list of labels: write ["cat", "dog"] or {{"0": "cat", "1": "dog"}}'
            )
    else:
        labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    _check_distinct(labels, f"--labels {path}")
    return labels


def labels_in(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the labels that a file's metadata hold; None if they hold none that are distinct."""
    for key in _METADATA_KEYS:
        labels = _from_text(metadata.get(key, ""))
        if labels and len(set(labels)) == len(labels):
            return labels
    return None


def _from_text(text: str) -> tuple[str, ...] | None:
    """Parse JSON, or the dict or list of Python that Ultralytics writes."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return _from_json(parse(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _from_json(value: object) -> tuple[str, ...] | None:
    """Return labels from a list, from index -> label, or from Keras's index -> [identifier, label]."""
    if isinstance(value, dict):
        indices = {str(key): each for key, each in value.items()}
        if set(indices) != {str(number) for number in range(len(indices))}:
            return None
        value = [indices[str(number)] for number in range(len(indices))]
    if not isinstance(value, list):
        return None
    labels = [each[-1] if isinstance(each, list) and each else each for each in value]
    if not all(isinstance(each, str) and each.strip() for each in labels):
        return None
    return tuple(each.strip() for each in labels)


def check_count(labels: tuple[str, ...], classes: int, output: str, origin: str) -> None:
    """Compare the number of labels with the number of classes.

    Raises:
        UsageError: they differ.
    """
    if len(labels) == classes:
        return
    hint = "name the labels in the order of the output, one in each line"
    if classes == len(labels) + 1:
        hint = "if class 0 is the background, as in many TensorFlow models, add a first line for it"
    raise UsageError(
        f"{origin} has {len(labels):,} labels, output {output!r} has {classes:,} classes: {hint}"
    )


def _check_distinct(labels: tuple[str, ...], origin: str) -> None:
    seen: dict[str, int] = {}
    repeated = []
    for number, label in enumerate(labels):
        if label in seen:
            repeated.append(f"{label!r} is label {seen[label]} and {number}")
        seen.setdefault(label, number)
    if repeated:
        more = f", and {len(repeated) - _MAX_NAMED} more" if len(repeated) > _MAX_NAMED else ""
        raise UsageError(
            f"{origin}: labels must be distinct, but {', '.join(repeated[:_MAX_NAMED])}{more}: "
            "rename one of each, such as 'crane (bird)'"
        )
