"""Parts as files: every float32 survives, errors have no labels, and odd paths are UTF-8."""

import csv
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from serving.batch_job.columns import Row
from serving.batch_job.part_files import Format, count_part, encode_part
from serving.errors import LenserveError

THIRD = float(np.float32(1 / 3))
ROWS = [
    Row("a.jpg", "ant, red", THIRD, ["ant, red", 'b"ee'], [THIRD, 1e-9], ""),
    Row("b\n.jpg", "", math.nan, [], [], "EMPTY_IMAGE: the image is empty: 0 bytes"),
    Row(os.fsdecode(b"\xff.jpg"), "", math.nan, [], [], "UNREADABLE_FILE: gone"),
]


def test_csv_keeps_every_digit_that_a_float32_has(tmp_path: Path) -> None:
    """Lists are JSON; an error leaves the other cells empty."""
    (tmp_path / "part.csv").write_bytes(encode_part(ROWS, "ants", 3, "csv"))

    with (tmp_path / "part.csv").open(newline="", encoding="utf-8") as file:
        good, empty, odd = csv.DictReader(file)
    assert np.float32(good["probability"]) == np.float32(1 / 3)
    assert json.loads(good["labels"]) == ["ant, red", 'b"ee']
    read = np.array(json.loads(good["probabilities"]), np.float32)
    assert read.tolist() == [THIRD, float(np.float32(1e-9))]
    assert (good["error"], good["model"], good["version"]) == ("", "ants", "3")
    assert (empty["path"], empty["label"], empty["probability"], empty["labels"]) == ("b\n.jpg", "", "", "")
    assert odd["path"] == r"\xff.jpg"


def test_parts_with_odd_cells_can_be_counted(tmp_path: Path) -> None:
    """A carriage return in a path, and more labels than Python's limit on a cell."""
    many = [f"label {number}" for number in range(20_000)]
    rows = [
        Row("a\rb.jpg", "ant", 1.0, many, [1.0] * len(many), ""),
        Row("c.jpg", "", math.nan, [], [], "EMPTY_IMAGE: the image is empty: 0 bytes"),
    ]
    (tmp_path / "part.csv").write_bytes(encode_part(rows, "ants", 3, "csv"))

    assert count_part(tmp_path / "part.csv", "csv") == (2, {"EMPTY_IMAGE": 1})
    with (tmp_path / "part.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a\rb.jpg", "c.jpg"]


def test_parquet_has_types_and_nulls(tmp_path: Path) -> None:
    """Lists are lists; what an error has not is null."""
    (tmp_path / "part.parquet").write_bytes(encode_part(ROWS, "ants", 3, "parquet"))

    table = parquet.read_table(tmp_path / "part.parquet")

    assert {name: str(table.schema.field(name).type) for name in ("probability", "labels", "version")} == {
        "probability": "float",
        "labels": "list<element: string>",
        "version": "int64",
    }
    good, empty, odd = table.to_pylist()
    assert good["probabilities"] == [THIRD, float(np.float32(1e-9))]
    assert good["error"] is None
    assert (empty["label"], empty["probability"], empty["labels"]) == (None, None, None)
    assert odd["path"] == r"\xff.jpg"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_part_is_counted_when_a_job_goes_on(tmp_path: Path, kind: Format) -> None:
    """Rows, and errors by code. A damaged file is named."""
    path = tmp_path / f"part.{kind}"
    path.write_bytes(encode_part(ROWS, "ants", 3, kind))

    counts = count_part(path, kind)

    assert counts.rows == 3
    assert dict(counts.errors) == {"EMPTY_IMAGE": 1, "UNREADABLE_FILE": 1}
    path.write_bytes(b"\xff\xfe no part\n1")
    with pytest.raises(LenserveError, match=re.escape(str(path)) + ".*remove it, and run the command again"):
        count_part(path, kind)
