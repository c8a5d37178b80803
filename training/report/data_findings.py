"""The data: how many images each split has, what the checks found, and pictures of that."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from training.data import DataReport, Dataset
from training.report.album import Album
from training.report.blocks import Block, Cell, Gallery, Photo, Prose, Table
from training.report.predictions import readable

_MOST_LABELS = 30  # rows; with more labels, only their totals
_MOST_PAIRS = 6

Place = tuple[str, int]  # split and position


def data_blocks(report: DataReport, dataset: Dataset | None, album: Album) -> tuple[Block, ...]:
    """Counts, then findings; pictures of duplicates and contradictions where the images may be shown."""
    findings = tuple(map(readable, (*report.notes(), *report.warnings()))) or ("The checks found nothing.",)
    blocks: list[Block] = [_counts(report.counts), Prose(findings)]
    if dataset is not None:
        blocks += _galleries(report, dataset, album)
    return tuple(blocks)


def equal_images(dataset: Dataset) -> list[list[Place]]:
    """Groups of images that are equal in every pixel, over all splits. Images on disk are not read again."""
    groups: dict[bytes, list[Place]] = {}
    for name, split in dataset.splits().items():
        if isinstance(split.images, np.ndarray):
            for index, image in enumerate(split.images):
                digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                groups.setdefault(digest, []).append((name, index))
    return [places for places in groups.values() if len(places) > 1]


def near_pairs(report: DataReport, dataset: Dataset) -> Iterator[tuple[Place, Place]]:
    """The pairs of near duplicates that are still in the data."""
    places = {
        name: (split, index)
        for split, images in dataset.splits().items()
        for index, name in enumerate(images.names)
    }
    for pair in report.near_duplicates:
        words = pair.split(" and ")
        for cut in range(1, len(words)):
            one, other = " and ".join(words[:cut]), " and ".join(words[cut:])
            if one in places and other in places:
                yield places[one], places[other]
                break


def _galleries(report: DataReport, dataset: Dataset, album: Album) -> Iterator[Block]:
    if report.conflicts or any(report.repeated.values()):
        groups = equal_images(dataset)
        contradicting = [group for group in groups if len(_labels(dataset, group)) > 1]
        agreeing = [group for group in groups if len(_labels(dataset, group)) == 1]
        yield from _pairs_gallery("Equal images with different labels", contradicting, dataset, album)
        yield from _pairs_gallery("Duplicates", agreeing, dataset, album)
    near = [list(pair) for pair in near_pairs(report, dataset)]
    yield from _pairs_gallery("Images that look the same", near, dataset, album)


def _labels(dataset: Dataset, places: list[Place]) -> set[int]:
    splits = dataset.splits()
    return {int(splits[split].labels[index]) for split, index in places}


def _pairs_gallery(title: str, groups: list[list[Place]], dataset: Dataset, album: Album) -> Iterator[Block]:
    splits = dataset.splits()
    photos = []
    for number, group in enumerate(groups[:_MOST_PAIRS], start=1):
        for split, index in group[:2]:
            label = dataset.labels[splits[split].labels[index]]
            name = readable(splits[split].names[index])
            photos.append(
                Photo(
                    album.add(split, splits[split], index),
                    f"{split} image {name}, labelled {label}",
                    (f"{number}: {label}", split, name),
                    hover=name,
                )
            )
    if photos:
        shown = min(len(groups), _MOST_PAIRS)
        caption = f"{shown} of {len(groups):,}; equal numbers belong together."
        yield Gallery(title, tuple(photos), caption=caption)


def _counts(counts: Mapping[str, Mapping[str, int]]) -> Table:
    used = {split: labels for split, labels in counts.items() if sum(labels.values())}
    names = list(dict.fromkeys(label for labels in used.values() for label in labels))
    if len(names) > _MOST_LABELS:
        return Table(
            "Images",
            ("split", "images", "labels", "fewest of a label", "most of a label"),
            tuple(
                (
                    split,
                    f"{sum(labels.values()):,}",
                    f"{len(labels):,}",
                    f"{min(labels.values()):,}",
                    f"{max(labels.values()):,}",
                )
                for split, labels in used.items()
            ),
        )
    most = {split: max(labels.values()) for split, labels in used.items()}
    rows: list[tuple[str | Cell, ...]] = [
        (label, *(_count(used[split].get(label, 0), most[split]) for split in used)) for label in names
    ]
    total: tuple[str | Cell, ...] = ("all", *(f"{sum(labels.values()):,}" for labels in used.values()))
    return Table("Images", ("label", *used), (*rows, total))


def _count(images: int, most: int) -> Cell:
    return Cell(f"{images:,}", images / most)
