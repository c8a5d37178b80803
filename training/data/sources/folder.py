"""Image files in class directories: <root>/train|val|test/<class>/, or <root>/<class>/ split by content."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.bundle import Geometry
from training.data.labels import label_named
from training.data.sources.folder_layout import Layout, directories, files, find_layout, is_image, readable
from training.data.splits import EvaluationData, SourceData, Split
from training.data.storage.decoded_images import IN_MEMORY, DecodeOptions, content_digests, decode_files
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file before decoding."""

    path: Path
    name: str  # path below the root, readable
    label: int


def load(geometry: Geometry, root: Path, decode: DecodeOptions = IN_MEMORY) -> SourceData:
    """Decode all image files, with the server's own code.

    Args:
        geometry: the size and channels of the decoded images.
        root: directory of the split directories, or of the class directories.
        decode: where decoded images are kept.

    Raises:
        DataError: the directory is missing or has another layout, a class directory has no images, no image
            can be decoded, or there is too little disk space for the decoded images.
    """
    layout = find_layout(root, trains=True)
    ignored: list[str] = []
    items = {name: list(_items(path, root, layout, ignored)) for name, path in layout.splits.items()}
    _require_images(layout, root, items, ignored)
    undecodable: dict[str, str] = {}
    streamed = exceeds(decode.limit_bytes, sum(map(len, items.values())), geometry)
    splits = {
        name: replace(
            decode_split(some, geometry, undecodable, decode, streamed=streamed),
            directory=_prefix(layout.splits[name], root),
        )
        for name, some in items.items()
    }
    if not any(len(split) for split in splits.values()):
        raise DataError(f"none of the {len(undecodable)} image files under {readable(root)} can be decoded")
    return SourceData(
        labels=layout.labels,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        undecodable=undecodable,
        ignored=tuple(ignored),
        unlabelled=layout.unlabelled,
        val_is_test=layout.val_is_test,
    )


def load_for_evaluation(geometry: Geometry, root: Path, decode: DecodeOptions = IN_MEMORY) -> EvaluationData:
    """Decode the images to evaluate on: the test split, or all images below class directories.

    Args:
        geometry: the size and channels of the decoded images.
        root: directory of the class directories, or of split directories, of which `test` is enough.
        decode: where decoded images are kept.

    Raises:
        DataError: see `load`.
    """
    layout = find_layout(root, trains=False)
    folder = layout.splits.get("test", layout.splits.get("train", root))
    items = list(_items(folder, root, layout, []))
    undecodable: dict[str, str] = {}
    streamed = exceeds(decode.limit_bytes, len(items), geometry)
    split = decode_split(items, geometry, undecodable, decode, streamed=streamed)
    split = replace(split, directory=_prefix(folder, root))
    if not len(split):
        raise DataError(f"none of the {len(items)} image files under {readable(folder)} can be decoded")
    return EvaluationData(layout.labels, split, "test" in layout.splits, undecodable)


def exceeds(limit_bytes: int | None, images: int, geometry: Geometry) -> bool:
    """Compare the size of that many decoded images with the limit; None means unlimited."""
    return limit_bytes is not None and images * math.prod(geometry.shape) > limit_bytes


def decode_split(
    items: Sequence[ImageFile],
    geometry: Geometry,
    undecodable: dict[str, str],
    decode: DecodeOptions,
    *,
    streamed: bool,
) -> Split:
    """Decode files to model geometry. Skips undecodable files, and adds their reasons to `undecodable`."""
    paths = [item.path for item in items]
    digests = content_digests(paths)
    images, reasons = decode_files(
        paths, geometry, decode.cache, streamed=streamed, digests=digests, on_progress=decode.on_progress
    )
    undecodable.update({items[index].name: why for index, why in reasons.items()})
    whole = Split(
        images,
        np.array([item.label for item in items], dtype=np.int64),
        tuple(item.name for item in items),
        tuple(digests),
    )
    if not reasons:
        return whole
    return whole.take(np.array([index for index in range(len(items)) if index not in reasons], np.intp))


def _prefix(folder: Path, root: Path) -> str:
    return "" if folder == root else f"{readable(folder.relative_to(root))}/"


def _items(folder: Path, root: Path, layout: Layout, ignored: list[str]) -> Iterator[ImageFile]:
    for class_folder in directories(folder):
        for path in files(class_folder):
            name = readable(path.relative_to(root))
            if is_image(path):
                yield ImageFile(path, name, layout.labels.index(label_named(class_folder.name)))
            else:
                ignored.append(name)


def _require_images(
    layout: Layout, root: Path, items: Mapping[str, Sequence[ImageFile]], ignored: Sequence[str]
) -> None:
    for split, folder in layout.splits.items():
        filled = {item.label for item in items[split]}
        for path in directories(folder):
            if layout.labels.index(label_named(path.name)) not in filled:
                name = readable(path.relative_to(root))
                others = sorted({Path(file).suffix for file in ignored if file.startswith(f"{name}/")})
                only = f", only files of other types ({', '.join(others)})" if others else ""
                raise DataError(
                    f"class directory {name} in {readable(root)} has no images{only}: add some, or remove it"
                )
