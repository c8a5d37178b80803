"""Images that cannot be read are errors of one image, with their reason."""

import os
from pathlib import Path

import pytest

from serving.batch_job.reading import Reader
from serving.bundle import ImageLimits
from serving.errors import EmptyImage, ImageTooLarge, LenserveError

LIMITS = ImageLimits(max_bytes=100)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_missing_file_says_so(tmp_path: Path, prefix: str) -> None:
    """A path and a URL."""
    with pytest.raises(LenserveError, match="cannot be read: No such file") as missing:
        Reader(f"{prefix}{tmp_path}").read("gone.jpg")
    assert missing.value.reason == "UNREADABLE_FILE"


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A pipe whose writer never comes must not stop the batch."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(LenserveError, match="not a regular file"):
        Reader(str(tmp_path)).read("pipe.jpg")
    with pytest.raises(LenserveError, match="this row has no path"):
        Reader(str(tmp_path)).read("")
    with pytest.raises(LenserveError, match="null byte"):
        Reader(str(tmp_path)).read("a\0.jpg")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """The message has the size and the limit, as the server's."""
    (tmp_path / "large.jpg").write_bytes(bytes(101))
    (tmp_path / "empty.jpg").touch()

    with pytest.raises(ImageTooLarge, match="101 bytes, the limit is 100"):
        Reader(str(tmp_path), limits=LIMITS).read("large.jpg")
    with pytest.raises(EmptyImage):
        Reader(str(tmp_path), limits=LIMITS).read("empty.jpg")
    with pytest.raises(ImageTooLarge):
        Reader("", archive=str(tmp_path / "large.jpg"), limits=LIMITS).read("member", 0, 101)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_tar_file_that_ends_too_early_is_an_error_of_its_last_image(tmp_path: Path, prefix: str) -> None:
    """It was cut after it was listed."""
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    reader = Reader("", archive=f"{prefix}{tmp_path / 'a.tar'}")

    assert reader.read("first", 2, 3) == b"234"
    with pytest.raises(LenserveError, match="the archive ends after 2 of its 5 bytes"):
        reader.read("last", 8, 5)
