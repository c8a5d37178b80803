"""Reads the column of paths of a table: CSV with a header, or Parquet."""

import csv
import io
from pathlib import PurePosixPath
from typing import Any

from serving.batch_job.reading import open_file
from serving.errors import UsageError
from serving.text_files import MARK_BYTES, encoding_of

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset({*_SEPARATORS, ".parquet"})
# Of one cell of CSV. Python's limit is one for the process, and 131,072 is too low for images as text or for
# thousands of labels.
MAX_CELL_CHARACTERS = 2**30


def column_of_table(source: str, column: str) -> list[str]:
    """Return the paths in a column, row by row; an empty text where a row has none.

    Args:
        source: path or URL of a .csv, .tsv or .parquet file.
        column: its name.

    Raises:
        UsageError: the table or the column cannot be read.
    """
    separator = _SEPARATORS.get(PurePosixPath(source).suffix.lower())
    with open_file(source) as file:
        if separator is None:
            return _of_parquet(source, file, column)
        encoding = "utf-8-sig"
        if file.seekable():
            encoding = encoding_of(file.read(MARK_BYTES))
            file.seek(0)
        text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
        return _of_csv(source, text, column, separator)


def require_pyarrow(what: str) -> Any:  # noqa: ANN401 - untyped library
    """Return the module pyarrow.parquet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from pyarrow import parquet  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"{what} needs pyarrow: in a checkout, pip install '.[batch]'") from error
    return parquet


def _of_csv(source: str, text: io.TextIOWrapper, column: str, separator: str) -> list[str]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    # Strict: a quote without an end is an error. Otherwise all rows after it would become one cell.
    rows = csv.reader(text, delimiter=separator, strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise _no_column(source, column, header)
        place = header.index(column)
        return [row[place] if place < len(row) else "" for row in rows if row]
    except csv.Error as error:
        raise UsageError(f"{source} is not CSV: line {rows.line_num}: {error}; correct its quotes") from error


def _of_parquet(source: str, file: Any, column: str) -> list[str]:  # noqa: ANN401 - fsspec is untyped
    parquet = require_pyarrow(source)
    try:
        table = parquet.ParquetFile(file)
        names: list[str] = table.schema_arrow.names
        if column not in names:
            raise _no_column(source, column, names)
        kind = table.schema_arrow.field(column).type
        if not _is_text(kind):
            raise UsageError(f"column {column!r} of {source} is {kind}, expected string: set --column")
        batches = table.iter_batches(columns=[column])
        return [path or "" for batch in batches for path in batch.column(column).to_pylist()]
    except OSError as error:  # also of pyarrow, for a file that is damaged
        raise UsageError(f"{source} is not Parquet: {error}") from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise UsageError(f"{source} is not Parquet: {error}") from error


def _is_text(kind: Any) -> bool:  # noqa: ANN401 - untyped library
    from pyarrow import types  # noqa: PLC0415 - of an extra

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _no_column(source: str, column: str, names: list[str]) -> UsageError:
    return UsageError(
        f"{source} has no column {column!r}, its columns are {', '.join(names) or 'none'}: set --column"
    )
