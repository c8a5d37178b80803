"""The output folder: parts are there completely or not at all, and only the same job goes on in it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from serving.batch_job.columns import Row
from serving.batch_job.output import JobDescription, open_output
from serving.errors import LenserveError, UsageError

JOB = JobDescription(
    source="photos",
    source_digest="a" * 64,
    images=7,
    model="ants",
    version=1,
    bundle_digest="b" * 64,
    precision="auto",
    top_k=5,
    max_image_bytes=100,
    max_image_pixels=100,
    format="csv",
    part_images=3,
)


def rows(count: int, error: str = "") -> list[Row]:
    """Rows of one label."""
    return [Row(f"{number}.jpg", "ant", 1.0, ["ant"], [1.0], error) for number in range(count)]


def test_what_is_missing_after_a_kill_is_the_work_that_is_left(tmp_path: Path) -> None:
    """Parts are counted again, and what a killed writer left is removed."""
    with open_output(tmp_path / "out", JOB) as output:
        assert output.missing() == [0, 1, 2]
        output.write(1, rows(3))
        output.write(2, rows(1, error="EMPTY_IMAGE: 0 bytes"))
    (tmp_path / "out" / ".writing-part-00000.csv").write_text("half a")

    with open_output(tmp_path / "out", replace(JOB, source="./photos")) as output:
        assert output.missing() == [0]
        assert output.rows_written == 4
        assert dict(output.errors) == {"EMPTY_IMAGE": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "job.json",
        "part-00001.csv",
        "part-00002.csv",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "pets", "source_digest": "c" * 64}, "another source: it has photos, this command pets"),
        (
            {"source_digest": "c" * 64, "images": 9},
            "a job on photos, whose images changed since it began: it had 7, now there are 9",
        ),
        ({"model": "bees"}, "another --model: it has ants, this command bees"),
        ({"version": 2}, "another version: it has 1, this command 2"),
        ({"bundle_digest": "c" * 64}, "another ants version 1, such as one of another --repository"),
        ({"top_k": 3}, "another --top-k: it has 5, this command 3"),
        ({"format": "parquet"}, "another --format"),
        ({"part_images": 4}, "another --part-images"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """The message names what differs, both values, and what to do."""
    with open_output(tmp_path, JOB):
        pass
    other = JobDescription(**{**asdict(JOB), **changes})
    expected = f"{message}.*choose another --output"

    with pytest.raises(UsageError, match=expected), open_output(tmp_path, other):
        pass


def test_folders_with_something_else_are_refused(tmp_path: Path) -> None:
    """Nothing of others is written over."""
    (tmp_path / "notes").touch()
    with pytest.raises(UsageError, match=r"has no job\.json but holds notes"), open_output(tmp_path, JOB):
        pass
    with pytest.raises(UsageError, match="cannot be created"), open_output(tmp_path / "notes", JOB):
        pass
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(UsageError, match="not the state of a batch"), open_output(tmp_path, JOB):
        pass
    (tmp_path / "job.json").write_text(json.dumps({"format_version": 9, **asdict(JOB)}))
    with pytest.raises(UsageError, match="has the format 9"), open_output(tmp_path, JOB):
        pass


def test_two_commands_do_not_write_the_same_output(tmp_path: Path) -> None:
    """The second is refused while the first runs."""
    with (
        open_output(tmp_path, JOB),
        pytest.raises(UsageError, match="in use by another process"),
        open_output(tmp_path, JOB),
    ):
        pass
    with open_output(tmp_path, JOB):
        pass


def test_a_part_that_lacks_rows_is_not_counted_as_written(tmp_path: Path) -> None:
    """It was changed after it was written: a rename is atomic."""
    with open_output(tmp_path, JOB) as output:
        output.write(0, rows(3))
    part = tmp_path / "part-00000.csv"
    part.write_text("\n".join(part.read_text().splitlines()[:-1]) + "\n")

    with pytest.raises(LenserveError, match="2 rows, expected 3: remove it"), open_output(tmp_path, JOB):
        pass


def test_a_full_disk_leaves_no_half_a_part(tmp_path: Path) -> None:
    """The message says what to do; what was written stays."""
    with open_output(tmp_path, JOB) as output:
        (tmp_path / ".writing-part-00000.csv").mkdir()  # as an error of the file system
        with pytest.raises(LenserveError, match="cannot be written: Is a directory; make room"):
            output.write(0, rows(3))
        assert output.missing() == [0, 1, 2]
