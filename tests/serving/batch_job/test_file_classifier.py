"""The callable of every engine: columns in, columns out. Also on its own, with bytes."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.batch_job.file_classifier import ClassifierOptions, FileClassifier
from serving.batch_job.reading import Reader
from serving.bundle import ImageLimits, Repository
from serving.errors import BundleError
from tests.colours import Publish


def png(colour: tuple[int, int, int]) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(buffer, "PNG")
    return buffer.getvalue()


def options(repository: Repository, **changes: object) -> ClassifierOptions:
    """Options for version 1 of `colours`, which another process receives."""
    made = ClassifierOptions(repository.root, "colours", 1, max_batch_size=2, **changes)  # type: ignore[arg-type]
    return pickle.loads(pickle.dumps(made))  # noqa: S301 - our own


def test_bytes_are_classified_and_other_columns_pass_through(
    repository: Repository, publish: Publish
) -> None:
    """A damaged image has an error in its row; the others their labels, in order."""
    publish()
    classify = FileClassifier(options(repository, top_k=2))

    result = classify({"id": [5, 6, 7], "bytes": [png((255, 0, 0)), b"no image", png((0, 0, 255))]})

    assert "bytes" not in result
    assert result["id"].tolist() == [5, 6, 7]
    assert result["label"].tolist() == ["red", "", "blue"]
    assert [len(each) for each in result["probabilities"]] == [2, 0, 2]
    assert result["probability"].tolist()[0] == result["probabilities"][0][0]
    assert np.isnan(result["probability"][1])
    assert result["error"].tolist()[::2] == ["", ""]
    assert result["error"][1].startswith("UNDECODABLE_IMAGE: the image cannot be decoded")


def test_paths_are_read_with_limits(repository: Repository, publish: Publish, tmp_path: Path) -> None:
    """Missing files and large files are rows."""
    publish()
    (tmp_path / "a.png").write_bytes(png((0, 255, 0)))
    (tmp_path / "large.png").write_bytes(bytes(2000))
    reader = Reader(str(tmp_path), limits=ImageLimits(max_bytes=1000))
    classify = FileClassifier(options(repository, reader=reader))

    result = classify({"path": ["gone.png", "large.png", "a.png"]})

    assert result["label"].tolist() == ["", "", "green"]
    assert [error.partition(":")[0] for error in result["error"]] == [
        "UNREADABLE_FILE",
        "IMAGE_TOO_LARGE",
        "",
    ]


def test_another_version_than_that_of_the_job_is_refused(repository: Repository, publish: Publish) -> None:
    """A process that finds other files under the same number must not mix their rows in."""
    publish()
    with pytest.raises(BundleError, match=r"has the digest .*, expected 000.*restore the published version"):
        FileClassifier(options(repository, digest="0" * 64))
