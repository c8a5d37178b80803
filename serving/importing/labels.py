"""Labels of a foreign model: from a text or JSON file, or from what the model's file says of itself."""

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.counted import counted
from serving.errors import UsageError
from serving.limited_files import read_once, why_unreadable
from serving.text_files import decode_text

_MAX_LABELS_BYTES = 16 * 2**20
_MAX_LABEL_CHARACTERS = 1000  # a longer line is another kind of text
_MAX_NAMED = 3  # faulty labels in one message
_MAX_SHOWN = 60  # characters of a label in a message

# Keys under which programs write labels: Ultralytics, Hugging Face, and those that many scripts use.
_METADATA_KEYS = ("names", "id2label", "labels", "classes", "class_names")

# Of ImageNet, COCO and Pascal VOC, with the background as class 0.
_CLASSES_WITH_BACKGROUND = (1001, 91, 21)

# Not str.splitlines: it also splits at form feeds and other characters that editors show within a line.
_LINE_END = re.compile(r"\r\n|\r|\n")
# Unicode's categories of characters that no label has: controls, ends of lines and paragraphs, half pairs.
_UNFIT = frozenset({"Cc", "Zl", "Zp", "Cs"})
_WRITE_LIST = 'write a list such as ["cat", "dog"], or an object such as {"0": "cat", "1": "dog"}'


def read_labels(path: Path) -> tuple[str, ...]:
    """Read labels from a file: one in each line, or JSON, a list or index -> label.

    Raises:
        UsageError: the file cannot be read, or is not a list of distinct labels.
    """
    origin = f"--labels {path}"
    try:
        text = decode_text(read_once(path, _MAX_LABELS_BYTES))
    except OSError as error:
        raise UsageError(
            f"{origin} cannot be read: {why_unreadable(error)}; name a text file with one label in each line"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{origin} is not UTF-8 (byte {error.start:,}): save it as a text file in UTF-8"
        ) from error
    is_json = path.suffix.lower() == ".json"
    labels, unit, first = (_read_json(text, origin), "label", 0) if is_json else (_lines(text), "line", 1)
    if not is_json and (separator := _numbered(labels)):
        raise UsageError(
            f"{origin}: every line begins with its own number and {separator!r}: keep only the labels, or "
            "write them as a JSON list if the numbers belong to them"
        )
    for number, label in enumerate(labels, start=first):
        if fault := _fault(label):
            raise UsageError(f"{origin}: {unit} {number} {fault}")
    _check_distinct(labels, origin, unit, first)
    return labels


def labels_in(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the labels that a file's metadata hold; None if they hold none that are distinct."""
    for key in _METADATA_KEYS:
        labels = _from_text(metadata.get(key, ""))
        if labels and len(set(labels)) == len(labels) and not any(map(_fault, labels)):
            return labels
    return None


def _lines(text: str) -> tuple[str, ...]:
    """Return the lines, without blank ones at the end."""
    lines = [line.strip() for line in _LINE_END.split(text)]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def _numbered(lines: Sequence[str]) -> str:
    """Return what separates a label from its number in every line, as in a table; or ""."""
    for first in (0, 1):
        for separator in (",", ";", ":"):
            numbered = [line.startswith(f"{at}{separator}") for at, line in enumerate(lines, start=first)]
            if numbered and all(numbered):
                return separator
    return ""


def _fault(label: str) -> str:
    """Return why this is not a label, and what to do; or ""."""
    if not label:
        return (
            "is blank, and would be the label of a class: write the missing label there, or remove it if no "
            "class is missing"
        )
    if len(label) > _MAX_LABEL_CHARACTERS:
        return f"has {len(label):,} characters, the limit is {_MAX_LABEL_CHARACTERS:,}: shorten it"
    if "\t" in label:
        return f"has a tab ({_shown(label)}), as a table: keep only the column with the labels"
    unfit = next((each for each in label if unicodedata.category(each) in _UNFIT), "")
    if unfit:
        return f"has the character U+{ord(unfit):04X}, which is not text ({_shown(label)}): remove it"
    return ""


def _shown(label: str) -> str:
    return repr(label if len(label) <= _MAX_SHOWN else f"{label[:_MAX_SHOWN]}...")


def _from_text(text: str) -> tuple[str, ...] | None:
    """Parse JSON, or the dict or list of Python that Ultralytics writes."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return _from_json(parse(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _read_json(text: str, origin: str) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{origin} is not JSON ({error}): {_WRITE_LIST}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _METADATA_KEYS if key in value), value)
    if isinstance(value, list) and any(isinstance(each, int | float) for each in value):
        raise UsageError(f"{origin} has numbers: labels are text, in quotes: {_WRITE_LIST}")
    if isinstance(value, dict) and value and not _by_index(value):
        keys = list(value)
        shown = ", ".join(map(_shown, keys[:_MAX_NAMED])) + (", ..." if len(keys) > _MAX_NAMED else "")
        raise UsageError(
            f"{origin} has {len(keys):,} keys ({shown}), which are not the numbers 0 to {len(keys) - 1:,}: "
            f"{_WRITE_LIST}"
        )
    labels = _from_json(value)
    if labels is None:
        raise UsageError(f"{origin} is not a list of labels: {_WRITE_LIST}")
    return labels


def _by_index(value: Mapping[object, object]) -> Sequence[object]:
    """Return the values of keys 0, 1, 2, ...; nothing if the keys are others."""
    indices = {str(key): each for key, each in value.items()}
    if set(indices) != {str(number) for number in range(len(indices))}:
        return ()
    return [indices[str(number)] for number in range(len(indices))]


def _from_json(value: object) -> tuple[str, ...] | None:
    """Return labels from a list, from index -> label, or from Keras's index -> [identifier, label]."""
    if isinstance(value, dict):
        value = _by_index(value)
    if not isinstance(value, list):
        return None
    labels = [each[-1] if isinstance(each, list) and each else each for each in value]
    if not all(isinstance(each, str) for each in labels):
        return None
    return tuple(each.strip() for each in labels)


def check_count(labels: Sequence[str], classes: int, output: str, origin: str) -> None:
    """Compare the number of labels with the number of classes.

    Raises:
        UsageError: they differ.
    """
    if len(labels) == classes:
        return
    hint = "--labels takes one label for each class, in the order of the output"
    if classes == len(labels) + 1 and classes in _CLASSES_WITH_BACKGROUND:
        hint = (
            "if class 0 is the background, as in many TensorFlow models, add a first line for it; otherwise "
            f"{hint}"
        )
    raise UsageError(
        f"{origin} has {counted(len(labels), 'label')}, output {output!r} has "
        f"{counted(classes, 'class', 'classes')}: {hint}"
    )


def _check_distinct(labels: Sequence[str], origin: str, unit: str, first: int) -> None:
    seen: dict[str, int] = {}
    repeated = []
    for number, label in enumerate(labels, start=first):
        if label in seen:
            repeated.append(f"{_shown(label)} is {unit} {seen[label]} and {number}")
        seen.setdefault(label, number)
    if repeated:
        more = f", and {len(repeated) - _MAX_NAMED} more" if len(repeated) > _MAX_NAMED else ""
        raise UsageError(
            f"{origin}: labels must be distinct, but {', '.join(repeated[:_MAX_NAMED])}{more}: "
            "rename one of each, such as 'crane (bird)'"
        )
