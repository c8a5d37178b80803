"""splits.csv: the split and label of every image file. A run compares it with that of an earlier version."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.counted import counted
from serving.text_files import read_text
from training.data.relabelled import one_label_each
from training.data.splits import Dataset

SPLITS_FILE = "splits.csv"
REMOVED = "removed"  # by the checks, because a later split holds the image too

_COLUMNS = ("split", "sha256", "label", "path")

Assignment = Mapping[bytes, str]  # SHA-256 of a file -> its split


def assignment_of(dataset: Dataset) -> dict[bytes, str]:
    """The split of each file's content; the last of several, which is the one that the checks keep."""
    return {digest: split for split, digest, _, _ in _rows(dataset)}


def write_assignment(dataset: Dataset, path: Path) -> None:
    """Write one line for each image file, removed ones too."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((split, digest.hex(), label, name) for split, digest, label, name in _rows(dataset))


def read_assignment(path: Path) -> dict[bytes, str] | None:
    """Read what `write_assignment` wrote; None if there is no such file, or it is damaged."""
    try:
        return {bytes.fromhex(row["sha256"]): row["split"] for row in _read(path)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None


def read_file_labels(path: Path) -> dict[bytes, str]:
    """Read the label of each file's content; see `one_label_each`. Empty if the labels were not recorded."""
    try:
        rows = [row for row in _read(path) if row["split"] != REMOVED]
        return one_label_each((bytes.fromhex(row["sha256"]), row["label"]) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}


def read_tested(path: Path) -> list[tuple[bytes, str]]:
    """SHA-256 and path of each test image, with repeated files, as `write_assignment` wrote them.

    Raises: as `csv` and `open` do; call it if `read_assignment` returned something.
    """
    return [(bytes.fromhex(row["sha256"]), row["path"]) for row in _read(path) if row["split"] == "test"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of the images of an earlier version. Files of equal content count once."""

    gained: Mapping[str, int]  # split -> images that the earlier version did not use
    moved: Mapping[tuple[str, str], int]  # split then, split now -> images
    gone: int  # images that are not used any more

    def __str__(self) -> str:
        """One line without the name of the version."""
        if not any(self.gained.values()) and not self.moved and not self.gone:
            return "the splits are the same"
        first, *others = self.gained.items()
        gained = ", ".join(
            (f"{first[0]} gained {counted(first[1], 'image')}", *(f"{split} {n}" for split, n in others))
        )
        moves = ", ".join(f"{n} from {then} to {now}" for (then, now), n in self.moved.items())
        gone = f", {self.gone} are no longer used" if self.gone else ""
        return f"{gained}; {f'moved: {moves}' if moves else 'none moved'}{gone}"


def compare(earlier: Assignment, now: Assignment) -> Comparison:
    """Compare the splits of two versions by the content of the files."""
    then = {digest: split for digest, split in earlier.items() if split != REMOVED}
    used = {digest: split for digest, split in now.items() if split != REMOVED}
    new = Counter(split for digest, split in used.items() if digest not in then)
    moved = Counter((then[d], split) for d, split in used.items() if d in then and then[d] != split)
    return Comparison(
        gained={split: new[split] for split in ("train", "validation", "test")},
        moved=dict(moved),
        gone=sum(digest not in used for digest in then),
    )


def _read(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(read_text(path)))


def _rows(dataset: Dataset) -> Iterator[tuple[str, bytes, str, str]]:
    """Split, digest, label and path of each file; the label of a removed one is empty."""
    for name, digest in dataset.removed.items():
        yield REMOVED, digest, "", name
    for split, images in dataset.splits().items():
        if images.digests:
            labels = [dataset.labels[index] for index in images.labels.tolist()]
            for digest, label, name in zip(images.digests, labels, images.names, strict=True):
                yield split, digest, label, name
