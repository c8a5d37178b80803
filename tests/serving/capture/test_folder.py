"""The files of captured images: whole or absent, bounded in size and age, owned by one worker."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from serving.bundle.captured import NOT_LABELS_FILE, why_not_labelled
from serving.capture.folder import CapturedImage, CaptureFolder, FolderInUse, folder_name

IMAGE = CapturedImage(b"\x89PNG" * 100, ".png", "digits", 2, "3", 3, 0.75, "8", 0.5)
ON_DISK_BYTES = 4096 + 256  # of one image with its line
NOW_S = 1_790_000_000.0
HOUR_S = 3600.0


class Open(Protocol):
    """Opens the folder of a worker in the test's folder."""

    def __call__(self, *, worker: int = 0, workers: int = 1, images: int = 100) -> CaptureFolder:
        """With room for this many images."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open folders, which are closed after the test."""
    folders: list[CaptureFolder] = []

    def open_folder(*, worker: int = 0, workers: int = 1, images: int = 100) -> CaptureFolder:
        max_bytes = images * ON_DISK_BYTES
        folder = CaptureFolder(
            tmp_path, worker=worker, workers=workers, max_bytes=max_bytes, max_age_s=HOUR_S
        )
        folders.append(folder)
        folder.open()
        return folder

    yield open_folder
    for folder in folders:
        folder.close()


def _images(root: Path) -> list[Path]:
    return sorted(root.glob("*/predicted/*/*"), key=lambda path: path.stem)


def _lines(root: Path) -> list[dict[str, object]]:
    tables = sorted(root.glob("*/answers/*.jsonl"))
    return [json.loads(line) for table in tables for line in table.read_text("utf-8").splitlines()]


def test_an_image_is_kept_as_it_was_with_its_answer(tmp_path: Path, opened: Open) -> None:
    """Under the predicted label; the table names the file."""
    folder = opened()
    assert folder.add(IMAGE, NOW_S)
    (path,) = _images(tmp_path)
    assert path.parent == tmp_path / "digits" / "predicted" / "3"
    assert path.read_bytes() == IMAGE.encoded
    assert _lines(tmp_path) == [
        {
            "file": f"predicted/3/{path.name}",
            "at": "2026-09-21T14:13:20.000+00:00",
            "version": 2,
            "label": "3",
            "confidence": 0.75,
            "second": "8",
            "margin": 0.5,
        }
    ]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("søl", "søl"),
        ("tabby cat", "tabby cat"),
        ("a/b", "label-7"),
        ("..", "label-7"),
        (".hidden", "label-7"),
        ("two\nlines", "label-7"),
        (" space", "label-7"),
        ("x" * 201, "label-7"),
    ],
)
def test_a_label_that_no_folder_can_have_as_its_name_is_numbered(label: str, name: str) -> None:
    """A label comes from a manifest, and must not lead out of the folder."""
    assert folder_name(label, 7) == name


def test_images_of_the_same_moment_have_different_names(tmp_path: Path, opened: Open) -> None:
    """Also if the clock went back."""
    folder = opened()
    for now_s in (NOW_S, NOW_S, NOW_S - 1):
        folder.add(IMAGE, now_s)
    assert len(_images(tmp_path)) == 3


def test_the_oldest_images_make_room_for_new_ones(tmp_path: Path, opened: Open) -> None:
    """Of all models; what is too large for the folder is not written."""
    folder = opened(images=3)
    for number, model in enumerate(("digits", "photos", "digits", "photos", "digits")):
        assert folder.add(replace(IMAGE, model=model), NOW_S + number)
        assert folder.size_bytes <= 3 * ON_DISK_BYTES
    assert [path.parts[-4] for path in _images(tmp_path)] == ["digits", "photos", "digits"]
    assert not folder.add(replace(IMAGE, encoded=bytes(4 * 4096)), NOW_S + 9)
    assert len(_images(tmp_path)) == 3


def test_images_and_their_lines_expire(tmp_path: Path, opened: Open) -> None:
    """After the maximum age; a table goes with its last image."""
    folder = opened()
    folder.add(IMAGE, NOW_S)
    folder.add(replace(IMAGE, model="photos"), NOW_S + HOUR_S)
    folder.expire(NOW_S + HOUR_S)
    assert len(_images(tmp_path)) == 2
    folder.expire(NOW_S + HOUR_S + 1)
    (path,) = _images(tmp_path)
    (table,) = tmp_path.glob("*/answers/*")
    assert path.parts[-4] == table.parts[-3] == "photos"


def test_tables_are_bounded_too(tmp_path: Path, opened: Open) -> None:
    """A thousand lines each; those whose images are gone are removed."""
    folder = opened(images=50)
    for number in range(2100):
        folder.add(IMAGE, NOW_S + number / 1000)
        if number == 2020:
            assert len(_lines(tmp_path)) == 1021
    assert len(_lines(tmp_path)) == 100
    kept = {path.name for path in _images(tmp_path)}
    assert kept <= {str(line["file"]).rpartition("/")[2] for line in _lines(tmp_path)}


@pytest.mark.parametrize("copied", ["digits/predicted", "digits", "."])
def test_copies_of_captured_images_are_no_labels_either(tmp_path: Path, opened: Open, copied: str) -> None:
    """A copy under another name is recognized, and the reason says how to make labels of it."""
    folder = opened()
    assert folder.add(IMAGE, NOW_S)
    copy = tmp_path.with_name(f"{tmp_path.name}-copy")
    shutil.copytree(tmp_path / copied, copy)
    assert "directories of what the network predicted" in why_not_labelled(copy)
    if copied == "digits/predicted":
        assert why_not_labelled(copy).endswith(f"then delete {copy / NOT_LABELS_FILE}")
        (copy / NOT_LABELS_FILE).unlink()
        assert not why_not_labelled(copy)


def test_labelled_images_are_never_removed(tmp_path: Path, opened: Open) -> None:
    """They were moved out of `predicted`; what a human put there has another name."""
    folder = opened(images=2)
    folder.add(IMAGE, NOW_S)
    (path,) = _images(tmp_path)
    labelled = tmp_path / "digits" / "labelled" / "8"
    labelled.mkdir(parents=True)
    path.rename(labelled / path.name)
    by_hand = path.with_name("holiday.png")
    by_hand.write_bytes(b"mine")
    for number in range(1, 5):
        folder.add(IMAGE, NOW_S + number)
    folder.close()
    reopened = opened(images=1)
    reopened.expire(NOW_S + 10 * HOUR_S)
    assert (labelled / path.name).exists()
    assert _images(tmp_path) == [by_hand]


def test_a_new_process_continues_with_the_images_of_the_last(tmp_path: Path, opened: Open) -> None:
    """Their size counts, and the oldest of them go first."""
    folder = opened()
    for number in range(3):
        folder.add(IMAGE, NOW_S + number)
    folder.close()
    before = _images(tmp_path)
    folder = opened(images=3)
    assert folder.size_bytes == 3 * ON_DISK_BYTES
    folder.add(IMAGE, NOW_S + 3)
    assert _images(tmp_path)[:2] == before[1:]
    assert len(_images(tmp_path)) == 3
    folder.expire(NOW_S + 10 * HOUR_S)
    assert not [*_images(tmp_path), *tmp_path.glob("*/answers/*")]


def test_each_worker_has_its_files_and_those_of_workers_that_are_gone(tmp_path: Path, opened: Open) -> None:
    """Of four workers, two are left: between them they own everything once."""
    for number in range(1, 5):
        folder = opened(worker=number, workers=4)
        folder.add(IMAGE, NOW_S)
        folder.close()
    left = [opened(worker=number, workers=2) for number in (1, 2)]
    assert [each.size_bytes for each in left] == [2 * ON_DISK_BYTES] * 2


def test_two_servers_do_not_share_a_folder(tmp_path: Path, opened: Open) -> None:
    """Each would remove what the other captured."""
    folder = opened()
    with pytest.raises(FolderInUse, match="another server captures into"):
        opened()
    folder.close()
    opened().close()


_CAPTURE_FOR_EVER = """
import sys, time
from pathlib import Path
from serving.bundle.captured import NOT_LABELS_FILE, why_not_labelled
from serving.capture.folder import CapturedImage, CaptureFolder
folder = CaptureFolder(Path(sys.argv[1]), worker=0, workers=1, max_bytes=2**22, max_age_s=3600)
folder.open()
print("open", flush=True)
while True:
    encoded = b"begin" + bytes(300_000) + b"end"
    image = CapturedImage(encoded, ".png", "digits", 1, "3", 3, 0.5, "8" * 5000, 0.1)
    folder.add(image, time.time())
"""


def test_a_process_killed_at_any_moment_leaves_whole_images(tmp_path: Path, opened: Open) -> None:
    """And every line has its end, or is the last; a successor removes what was staged."""
    for attempt in range(6):
        program = [sys.executable, "-c", _CAPTURE_FOR_EVER, str(tmp_path)]
        with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.01 + 0.007 * attempt)  # the moment of the kill
            process.send_signal(signal.SIGKILL)
        assert _images(tmp_path)
        for path in _images(tmp_path):
            content = path.read_bytes()
            assert content.startswith(b"begin")
            assert content.endswith(b"end")
    opened().close()
    assert [path.name for path in (tmp_path / ".staging").iterdir()] == ["lock-0"]
    for table in tmp_path.glob("*/answers/*"):
        for line in table.read_bytes().split(b"\n")[:-1]:
            json.loads(line)
