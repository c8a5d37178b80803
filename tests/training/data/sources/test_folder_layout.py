"""Folders as people have them: names of splits, links, odd names, other types."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from serving.bundle.captured import ANSWERS, PREDICTED
from training.data.sources import folder
from training.data.sources.folder_layout import find_layout, readable
from training.data.splits import SourceData
from training.errors import DataError

GEOMETRY = Geometry(height=8, width=8, channels=3)
_random = np.random.default_rng(0)


def add(*folders: Path, count: int = 3, suffix: str = ".png") -> None:
    """Add random pictures to directories."""
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = _random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f"{number}{suffix}")


def classes(*folders: Path) -> None:
    """Add class directories with pictures."""
    for path in folders:
        add(path / "ant", path / "bee")


def counted(source: SourceData) -> dict[str, int]:
    """Split -> images."""
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    return {name: len(split) for name, split in splits.items() if split is not None}


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "Valid"])
@pytest.mark.parametrize("test", ["test", "testing", "Test"])
def test_splits_have_many_names(tmp_path: Path, train: str, validation: str, test: str) -> None:
    """Every usual name, in any capitals, is the split that it names."""
    for name in (train, validation, test):
        (tmp_path / name / "ant").mkdir(parents=True)
        (tmp_path / name / "bee").mkdir()
    layout = find_layout(tmp_path, trains=True)
    assert {name: path.name for name, path in layout.splits.items()} == {
        "train": train,
        "validation": validation,
        "test": test,
    }
    assert layout.labels == ("ant", "bee")


@pytest.mark.parametrize("beside", ["extra", "trian", "evaluation", "unlabeled"])
def test_a_directory_beside_train_that_is_no_split_is_refused_by_name(tmp_path: Path, beside: str) -> None:
    """It is not ignored, and splits do not become classes."""
    classes(tmp_path / "train", tmp_path / "test", tmp_path / beside)
    with pytest.raises(DataError, match=f"has test and train, but {beside} beside is not a split"):
        folder.load(GEOMETRY, tmp_path)


def test_class_directories_beside_a_split_are_refused(tmp_path: Path) -> None:
    """Classes in the root and a test directory with classes: what to train on is unclear."""
    classes(tmp_path, tmp_path / "test")
    with pytest.raises(DataError, match="has test, but ant and bee beside is not a split"):
        folder.load(GEOMETRY, tmp_path)


@pytest.mark.parametrize("names", [("val", "valid"), ("Train", "train"), ("dev", "validation")])
def test_two_directories_for_one_split_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """The message names both."""
    classes(tmp_path / "train", *(tmp_path / name for name in names))
    with pytest.raises(DataError, match=f"has {names[0]} and {names[1]}, two directories for the"):
        folder.load(GEOMETRY, tmp_path)


@pytest.mark.parametrize("name", ["train", "Training"])
def test_a_class_can_be_called_train(tmp_path: Path, name: str) -> None:
    """Pictures directly in it, as in its neighbours, make it a class."""
    add(tmp_path / "car", tmp_path / "bus", tmp_path / name)
    source = folder.load(GEOMETRY, tmp_path)
    assert source.labels == tuple(sorted(("car", "bus", name)))
    assert counted(source) == {"train": 9}


def test_classes_of_any_name_can_be_below_train(tmp_path: Path) -> None:
    """The way that the messages offer for classes called test or train."""
    add(tmp_path / "train" / "train", tmp_path / "train" / "test", tmp_path / "train" / "val")
    assert folder.load(GEOMETRY, tmp_path).labels == ("test", "train", "val")


@pytest.mark.parametrize("name", ["test", "Val", "dev"])
def test_unlabelled_images_beside_classes_do_not_become_a_class(tmp_path: Path, name: str) -> None:
    """A directory of pictures that is named as a split is refused beside class directories."""
    classes(tmp_path)
    add(tmp_path / name)
    with pytest.raises(DataError, match=f"has {name} beside ant and bee, a split or a class"):
        folder.load(GEOMETRY, tmp_path)


def test_an_unlabelled_test_directory_is_named_and_left_out(tmp_path: Path) -> None:
    """As competitions publish it: the test split is then split off, or is val."""
    classes(tmp_path / "train")
    add(tmp_path / "test", count=5)
    source = folder.load(GEOMETRY, tmp_path)
    assert counted(source) == {"train": 6}
    assert source.unlabelled == {"test": 5}
    classes(tmp_path / "val")
    source = folder.load(GEOMETRY, tmp_path)
    assert counted(source) == {"train": 6, "test": 6}
    assert source.val_is_test


def test_images_beside_class_directories_are_counted(tmp_path: Path) -> None:
    """They have no label, and are not left out silently."""
    classes(tmp_path / "train", tmp_path / "test")
    add(tmp_path / "train", count=2)
    add(tmp_path, count=1)
    assert folder.load(GEOMETRY, tmp_path).unlabelled == {"train": 2, readable(tmp_path): 1}


def test_unlabelled_training_images_are_refused(tmp_path: Path) -> None:
    """A flat train directory."""
    add(tmp_path / "train")
    classes(tmp_path / "test")
    with pytest.raises(DataError, match="train has 0 class directories, at least 2 are needed"):
        folder.load(GEOMETRY, tmp_path)


def test_images_behind_links_are_seen_once(tmp_path: Path) -> None:
    """Linked class directories, directories in them and files; links in a circle end."""
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    add(elsewhere / "ants", elsewhere / "more", elsewhere / "single", count=4)
    add(root / "bees", count=4)
    (root / "ants").symlink_to(elsewhere / "ants")
    (root / "bees" / "more").symlink_to("../../elsewhere/more")
    (root / "bees" / "one.png").symlink_to(elsewhere / "single" / "0.png")
    (root / "bees" / "self").symlink_to(".")
    (root / "bees" / "up").symlink_to("..")
    (root / "bees" / "again").symlink_to(root / "bees" / "more")
    (elsewhere / "more" / "back").symlink_to(root / "bees")
    (root / "bees" / "lost.png").symlink_to("nowhere.png")
    source = folder.load(GEOMETRY, root)
    assert np.bincount(source.train.labels).tolist() == [4, 9]
    assert "ants/0.png" in source.train.names
    assert list(source.undecodable) == ["bees/lost.png"]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".mpo", ".apng", ".pnm"])
def test_every_extension_of_a_decodable_type_is_an_image(tmp_path: Path, suffix: str) -> None:
    """What the server decodes is not ignored for its name."""
    kind = {".apng": ".png", ".pnm": ".ppm"}.get(suffix.lower(), ".jpg")
    add(tmp_path / "ant", tmp_path / "bee", suffix=kind)
    for path in (tmp_path / "bee").iterdir():
        path.rename(path.with_suffix(suffix))
    source = folder.load(GEOMETRY, tmp_path)
    assert np.bincount(source.train.labels).tolist() == [3, 3]
    assert source.ignored == ()


def test_a_class_of_another_type_is_refused_with_the_type(tmp_path: Path) -> None:
    """A class of which every file is ignored."""
    classes(tmp_path)
    for path in (tmp_path / "bee").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"bee in .* has no images, only files of other types \(\.heic\)"):
        folder.load(GEOMETRY, tmp_path)


def test_hidden_and_system_files_are_not_images(tmp_path: Path) -> None:
    """What macOS and others leave beside pictures is no class and no damaged image."""
    classes(tmp_path)
    (tmp_path / "__MACOSX" / "ant").mkdir(parents=True)
    (tmp_path / "ant" / "@eaDir").mkdir()
    for name in ("__MACOSX/ant/._0.png", "ant/._0.png", "ant/.DS_Store", "ant/@eaDir/thumb.png"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    source = folder.load(GEOMETRY, tmp_path)
    assert source.labels == ("ant", "bee")
    assert (source.undecodable, source.ignored, counted(source)) == ({}, (), {"train": 6})


def test_a_directory_with_everything_in_one_directory_is_named(tmp_path: Path) -> None:
    """As archives unpack: the message names the directory to use."""
    classes(tmp_path / "photos")
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(DataError, match=r"has 1 class directory.* did you mean --data-root .*photos\?"):
        folder.load(GEOMETRY, tmp_path)


INVISIBLE = ("ants\u200b", "\u202eants", "an\u2028ts", "an\x85ts", "ants ", "   ")


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", *map(os.fsencode, INVISIBLE)])
def test_class_names_that_are_no_text_are_refused(tmp_path: Path, name: bytes) -> None:
    """In one line of UTF-8, before an image is decoded; so are names that look like another."""
    classes(tmp_path)
    (tmp_path / os.fsdecode(name)).mkdir()
    with pytest.raises(DataError, match="cannot be a label: its name is not UTF-8") as caught:
        folder.load(GEOMETRY, tmp_path)
    assert str(caught.value).encode().isascii()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("splits", [False, True])
def test_both_forms_of_an_accent_are_one_class(tmp_path: Path, *, splits: bool) -> None:
    """MacOS writes it as two characters, in a split or beside the class as Linux writes it."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert composed != decomposed
    train, test = (tmp_path / "train", tmp_path / "test") if splits else (tmp_path, tmp_path)
    add(train / composed, test / decomposed, train / "tea", test / "tea")
    source = folder.load(GEOMETRY, tmp_path)
    assert source.labels == (composed, "tea")
    assert counted(source) == ({"train": 6, "test": 6} if splits else {"train": 9})
    counts = [int((source.train.labels == label).sum()) for label in (0, 1)]
    assert counts == ([3, 3] if splits else [6, 3])


def test_a_class_may_have_joiners(tmp_path: Path) -> None:
    """They are part of words in Persian."""
    name = "\u0645\u06cc\u200c\u062e"
    add(tmp_path / name, tmp_path / "bee")
    assert set(folder.load(GEOMETRY, tmp_path).labels) == {name, "bee"}


@pytest.mark.parametrize("names", [("train_set", "test_set"), ("seg_train", "seg_test"), ("trn", "val2")])
def test_splits_under_other_names_do_not_become_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    """Directories with the same classes in each, one of them called almost like a split, are named."""
    classes(*(tmp_path / name for name in names))
    with pytest.raises(DataError, match=f"{min(names)} and {max(names)} with the same directories in each"):
        folder.load(GEOMETRY, tmp_path)


def test_classes_may_have_the_same_directories(tmp_path: Path) -> None:
    """As pictures by year, or of a train from two sides: their names are not those of splits."""
    add(*(tmp_path / name / year for name in ("cat", "dog") for year in ("2024", "2025")))
    assert counted(folder.load(GEOMETRY, tmp_path)) == {"train": 12}
    add(tmp_path / "train station")
    assert folder.load(GEOMETRY, tmp_path).labels == ("cat", "dog", "train station")


def test_splits_inside_of_classes_are_refused(tmp_path: Path) -> None:
    """They would be mixed, and test images trained on."""
    add(*(tmp_path / name / split for name in ("cat", "dog") for split in ("train", "test")))
    with pytest.raises(
        DataError, match=r"class directory cat in .* has test and train: splits are the outer"
    ):
        folder.load(GEOMETRY, tmp_path)


@pytest.mark.parametrize("beside", ["$RECYCLE.BIN", "System Volume Information", "lost+found"])
def test_directories_of_the_system_are_neither_splits_nor_classes(tmp_path: Path, beside: str) -> None:
    """On the root of a disk."""
    (tmp_path / beside).mkdir()
    add(tmp_path / "ant", tmp_path / "bee")
    assert folder.load(GEOMETRY, tmp_path).labels == ("ant", "bee")


def test_links_to_themselves_are_named_and_left_out(tmp_path: Path) -> None:
    """A link that leads nowhere is a damaged file, not the end of the run."""
    add(tmp_path / "ant", tmp_path / "bee")
    for link in (tmp_path / "ant" / "loop", tmp_path / "ant" / "loop.png", tmp_path / "loop"):
        link.symlink_to(link.name)
    source = folder.load(GEOMETRY, tmp_path)
    assert counted(source) == {"train": 6}
    assert list(source.undecodable) == ["ant/loop.png"]


def test_a_directory_of_images_without_classes_says_what_is_missing(tmp_path: Path) -> None:
    """The images are counted."""
    add(tmp_path, count=4)
    with pytest.raises(DataError, match="it has 4 images without a label: move them into a directory"):
        folder.load_for_evaluation(GEOMETRY, tmp_path)


def test_file_names_that_are_no_text_are_written_as_text(tmp_path: Path) -> None:
    """A sound picture is used, a damaged one is listed, both under a name that can be written."""
    classes(tmp_path)
    (tmp_path / "ant" / "0.png").rename(tmp_path / "ant" / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / "bee" / os.fsdecode(b"a\nb\xff.jpg")).write_bytes(b"junk")
    source = folder.load(GEOMETRY, tmp_path)
    assert r"ant/caf\xe9.png" in source.train.names
    assert list(source.undecodable) == [r"bee/a\x0ab\xff.jpg"]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """A named pipe with the name of an image would block for ever."""
    classes(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    assert counted(folder.load(GEOMETRY, tmp_path)) == {"train": 6}


@pytest.mark.parametrize("root", ["capture", "capture/pets", "capture/pets/predicted", "."])
def test_captured_images_that_nobody_labelled_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    """Their directories are what a network predicted: it would learn its own mistakes as truth."""
    classes(tmp_path / "capture" / "pets" / PREDICTED, tmp_path / "capture" / "pets" / "labelled")
    (tmp_path / "capture" / "pets" / ANSWERS).mkdir()
    monkeypatch.chdir(tmp_path / "capture" / "pets" / PREDICTED if root == "." else tmp_path)
    with pytest.raises(
        DataError, match=r"what the network predicted.*pets/labelled/CLASS, and name .*pets/l"
    ):
        find_layout(Path(root), trains=True)
    assert find_layout(tmp_path / "capture" / "pets" / "labelled", trains=True).labels == ("ant", "bee")


def test_a_class_may_be_named_like_a_folder_of_captured_images(tmp_path: Path) -> None:
    """Only both names, side by side, are those of a server."""
    add(tmp_path / PREDICTED, tmp_path / "other")
    assert find_layout(tmp_path, trains=True).labels == ("other", PREDICTED)
