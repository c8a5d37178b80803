"""Which directories below a data root are splits and which are classes, and their files. Decodes nothing."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from serving.bundle.captured import why_not_labelled
from serving.bundle.images import FORMATS
from serving.counted import counted
from training.data.labels import is_label, label_named
from training.errors import DataError

# Names of split directories, in any capitals.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_ALLOWED = "train (or training), val (valid, validation, dev) and test (testing)"

MIN_CLASSES = 2  # one class needs no classifier

# Left by macOS archives, Synology's thumbnails, Windows and Linux; names that begin with a dot are skipped.
_SYSTEM_DIRECTORIES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Parts of names such as train_set or seg_test, which are splits if they hold the same classes.
_LIKE_SPLITS = ("train", "val", "test")
_SHARED_CLASSES = 2  # directories of the same name in two others: classes in splits

_NOT_IN_A_LINE = ("Cc", "Zl", "Zp")  # categories of characters: control, line and paragraph separators

# Pillow's list has these formats under their own names, but its JPEG plugin opens them.
_ALSO_JPEG = (".mpo",)


@dataclass(frozen=True, slots=True)
class Layout:
    """The directory of each split; a root of class directories is its own training split."""

    splits: Mapping[str, Path]
    labels: tuple[str, ...]
    unlabelled: Mapping[str, int]  # directory -> images in it that are in no class directory
    val_is_test: bool  # there is no test directory, so the validation directory is the test split


def find_layout(root: Path, *, trains: bool) -> Layout:
    """Find the splits and classes below a root.

    1. No directory is named as a split: each directory is a class.
    2. A directory named as the training split has images and no directories, and so have its neighbours:
       each of them is a class.
    3. Directories named as splits: each has class directories. One that has none is left out, except the
       training split. Without a test split, the validation directory is the test split, because a proof needs
       images that chose nothing; validation is then split off training.

    Args:
        root: the data root.
        trains: needs a training split and two classes; an evaluation needs any split and one class.

    Raises:
        DataError: the root is not a directory or has captured images without labels, a directory is neither
            a split nor a class or could be both, there are too few classes, or a class's name is not UTF-8.
    """
    if not root.is_dir():
        raise DataError(f"the data root {readable(root)} is not a directory")
    if reason := why_not_labelled(root):
        raise DataError(readable(reason))
    splits = _split_directories(root)
    if splits == {"train": root}:
        _refuse_hidden_splits(root)
    unlabelled = {readable(path.name): _count_images(path) for path in splits.values() if path != root}
    unlabelled[readable(root)] = _count_images(root)
    with_classes = {name: path for name, path in splits.items() if name == "train" or directories(path)}
    without = {readable(path.name) for name, path in splits.items() if name not in with_classes}
    val_is_test = "test" not in with_classes and "validation" in with_classes
    if val_is_test:
        with_classes["test"] = with_classes.pop("validation")
    if trains and "train" not in with_classes:
        raise DataError(f"{readable(root)} has {_listed(list(splits.values()))}, but no train directory")
    checked = [with_classes["train"]] if trains else list(with_classes.values())
    _require_classes(checked, MIN_CLASSES if trains else 1)
    return Layout(
        with_classes,
        _labels(with_classes.values(), root),
        {name: count for name, count in unlabelled.items() if count or name in without},
        val_is_test,
    )


def directories(folder: Path) -> list[Path]:
    """The directories in a directory, sorted by name, without hidden and system directories."""
    return [Path(entry) for entry in _entries(folder) if _is_directory(entry)]


def files(folder: Path) -> Iterator[Path]:
    """Every file below a directory, sorted, without hidden files. Links are followed, but not in a circle.

    A link that leads nowhere is yielded too, so that it is reported as undecodable.
    """
    ancestors = (folder, *folder.absolute().parents, *folder.resolve().parents)
    yield from _walk(folder, {_identity(path) for path in ancestors})


def is_image(path: Path) -> bool:
    """Check the file name's extension against those of the image types that the server decodes."""
    return path.suffix.lower() in _extensions()


def readable(path: Path | str) -> str:
    r"""A path as one line of valid text: bytes that are not UTF-8 and control characters as `\xe9`."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(_escaped(c) if unicodedata.category(c) in _NOT_IN_A_LINE else c for c in text)


def _quoted(path: Path) -> str:
    """A path with its spaces and invisible characters to be seen."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in readable(path))
    return f"'{''.join(shown)}'"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode() if character > "\x7f" else f"\\x{ord(character):02x}"


def _split_directories(root: Path) -> dict[str, Path]:
    found = directories(root)
    named = [path for path in found if path.name.casefold() in _SPLITS]
    others = [path for path in found if path not in named]
    if not named or (others and _are_classes(root, named, others)):
        return {"train": root}
    if others:
        raise DataError(
            f"{readable(root)} has {_listed(named)}, but {_listed(others)} beside is not a split: splits are "
            f"{_ALLOWED}. Rename it or move it away; if every directory is a class, put all into one named "
            "train"
        )
    splits: dict[str, Path] = {}
    for path in named:
        split = _SPLITS[path.name.casefold()]
        if split in splits:
            both = _listed([splits[split], path])
            raise DataError(f"{readable(root)} has {both}, two directories for the {split} split: keep one")
        splits[split] = path
    return splits


def _are_classes(root: Path, named: list[Path], others: list[Path]) -> bool:
    """Decide whether directories with names of splits are classes like their neighbours."""
    if any(directories(path) for path in named):
        return False
    unclear = [path for path in named if _SPLITS[path.name.casefold()] != "train" and _count_images(path)]
    if unclear:
        # Probably unlabelled test images: as a class they would be trained on.
        raise DataError(
            f"{readable(root)} has {_listed(unclear)} beside {_listed(others)}, a split or a class: move it "
            "away if it is a split; if it is a class, put all classes into a directory named train"
        )
    return all(_SPLITS[path.name.casefold()] == "train" for path in named)


def _refuse_hidden_splits(root: Path) -> None:
    """Refuse class directories that hold splits, and splits under other names that would become classes."""
    inner = {path: directories(path) for path in directories(root)}
    for path, below in inner.items():
        splits = [each for each in below if each.name.casefold() in _SPLITS]
        if len({_SPLITS[each.name.casefold()] for each in splits}) > 1:
            raise DataError(
                f"class directory {readable(path.name)} in {readable(root)} has {_listed(splits)}: splits "
                f"are the outer directories. Move the images to {splits[0].name}/{readable(path.name)}, and "
                "so on"
            )
    for path, below in inner.items():
        names = {each.name for each in below}
        alike = [
            other for other in inner if len(names & {each.name for each in inner[other]}) >= _SHARED_CLASSES
        ]
        if len(alike) > 1 and any(part in path.name.casefold() for part in _LIKE_SPLITS):
            raise DataError(
                f"{readable(root)} has {_listed(alike)} with the same directories in each: they would become "
                f"classes. If they are splits, rename them: splits are {_ALLOWED}"
            )


def _require_classes(folders: list[Path], needed: int) -> None:
    classes = [path for folder in folders for path in directories(folder)]
    if len(classes) < needed:
        # An archive often holds one directory with everything in it.
        inner = len(classes) == 1 and directories(classes[0])
        hint = f"; did you mean --data-root {readable(classes[0])}?" if inner else ""
        if images := _count_images(folders[0]):
            unlabelled = counted(images, "image")
            hint = f"; it has {unlabelled} without a label: move them into a directory for each class"
        raise DataError(
            f"{readable(folders[0])} has {counted(len(classes), 'class directory', 'class directories')}, at "
            f"least {needed} {'is' if needed == 1 else 'are'} needed{hint}"
        )


def _labels(folders: Iterable[Path], root: Path) -> tuple[str, ...]:
    classes = [path for folder in folders for path in directories(folder)]
    for path in classes:
        if not is_label(path.name):
            raise DataError(
                f"class directory {_quoted(path.relative_to(root))} in {readable(root)} cannot be a label: "
                "its name is not UTF-8, has invisible characters, or a space at an end. Rename it"
            )
    return tuple(sorted({label_named(path.name) for path in classes}))


def _count_images(folder: Path) -> int:
    """Images directly in a directory."""
    return sum(is_image(Path(entry)) and not _follow(entry.is_dir) for entry in _entries(folder))


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    for entry in _entries(folder):
        path = Path(entry)
        if _is_directory(entry):
            identity = _identity(path)
            if identity not in entered:
                entered.add(identity)
                yield from _walk(path, entered)
        elif _is_file(entry) or (entry.is_symlink() and not path.exists()):
            yield path


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"the directory {readable(folder)} cannot be read: {error.strerror}") from error
    return sorted(shown, key=lambda entry: entry.name)


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    return entry.name not in _SYSTEM_DIRECTORIES and _follow(entry.is_dir)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return _follow(entry.is_file)


def _follow(is_kind: Callable[[], bool]) -> bool:
    """False for a link that leads to itself, which is an error."""
    try:
        return is_kind()
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset((*(extension for extension, kind in known.items() if kind in FORMATS), *_ALSO_JPEG))


def _listed(paths: list[Path]) -> str:
    *first, last = (readable(path.name) for path in paths)
    return f"{', '.join(first)} and {last}" if first else last
