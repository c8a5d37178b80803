"""Writes and reads one part of an output: CSV or Parquet, one row for each image."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from serving.batch_job.columns import Row
from serving.batch_job.tables import MAX_CELL_CHARACTERS, require_pyarrow
from serving.errors import LenserveError

Format = Literal["csv", "parquet"]
COLUMNS = (*Row._fields, "model", "version")


class DamagedPart(LenserveError):
    """A part of an output was changed after it was written."""


class Counts(NamedTuple):
    """What a part holds."""

    rows: int
    errors: Counter[str]  # by code


def encode_part(rows: Sequence[Row], model: str, version: int, kind: Format) -> bytes:
    """Return the content of a part."""
    return (_to_csv if kind == "csv" else _to_parquet)(rows, model, version)


def count_part(path: Path, kind: Format) -> Counts:
    """Count the rows and errors of a part.

    Raises:
        DamagedPart: it cannot be read.
    """
    try:
        read: Callable[[Path], list[str | None]] = _csv_errors if kind == "csv" else _parquet_errors
        errors = read(path)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DamagedPart(f"{path} cannot be read ({error}): remove it, and run the command again") from error
    return Counts(len(errors), count_errors(errors))


def count_errors(errors: Iterable[str | None]) -> Counter[str]:
    """Count errors by their code."""
    return Counter(error.partition(":")[0] for error in errors if error)


def _to_csv(rows: Sequence[Row], model: str, version: int) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    # Python before 3.13 does not quote a cell for its \r, which readers take for the end of a row.
    all_quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for row in rows:
        probability = labels = probabilities = ""
        if not row.error:
            probability = _number(row.probability)
            labels = json.dumps(list(row.labels), ensure_ascii=False)
            probabilities = f"[{', '.join(map(_number, row.probabilities))}]"
        path, error = _utf8(row.path), _utf8(row.error)
        by = all_quoted if "\r" in path + row.label + error else writer
        by.writerow((path, row.label, probability, labels, probabilities, error, model, version))
    return text.getvalue().encode()


def _number(probability: float) -> str:
    return f"{probability:.9g}"  # enough for every float32


def _csv_errors(path: Path) -> list[str | None]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    with path.open(encoding="utf-8", newline="") as file:
        return [row["error"] for row in csv.DictReader(file)]


def _to_parquet(rows: Sequence[Row], model: str, version: int) -> bytes:
    parquet = require_pyarrow("--format parquet")
    import pyarrow as pa  # noqa: PLC0415 - of an extra

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("probability", pa.float32()),
            ("labels", pa.list_(pa.string())),
            ("probabilities", pa.list_(pa.float32())),
            ("error", pa.string()),
            ("model", pa.string()),
            ("version", pa.int64()),
        ]
    )
    columns = {
        "path": [_utf8(row.path) for row in rows],
        "label": [None if row.error else row.label for row in rows],
        "probability": [None if row.error else row.probability for row in rows],
        "labels": [None if row.error else row.labels for row in rows],
        "probabilities": [None if row.error else row.probabilities for row in rows],
        "error": [_utf8(row.error) or None for row in rows],
        "model": [model] * len(rows),
        "version": [version] * len(rows),
    }
    content = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), content)
    return content.getvalue()


def _utf8(text: str) -> str:
    r"""Return a path, or a message with one, as UTF-8: bytes that are not become \xff."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _parquet_errors(path: Path) -> list[str | None]:
    errors: list[str | None] = (
        require_pyarrow(str(path)).read_table(path, columns=["error"]).column("error").to_pylist()
    )
    return errors
