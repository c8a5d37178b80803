"""Four quadrants: predictions that are right or wrong, and sure or unsure."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.data import Dataset
from training.data.splits import Indices
from training.report.album import Album
from training.report.blocks import Block, Gallery, Prose, Row, Table
from training.report.galleries import percent, predicted_photos
from training.report.predictions import Predictions

SURE = 0.9  # a prediction with at least this probability
_EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class Quadrant:
    """The images of one quadrant."""

    name: str
    members: Indices  # those that say most about it first
    mean_loss: float | None  # in nats; None: without images


def quadrants(predictions: Predictions, sure: float = SURE) -> tuple[Quadrant, ...]:
    """Right and sure, right and unsure, wrong and sure, wrong and unsure."""
    confident = predictions.confidence >= sure
    found = []
    for right in (True, False):
        for is_sure in (True, False):
            members = np.flatnonzero((predictions.correct == right) & (confident == is_sure))
            # Sure ones: the surest first. Unsure ones: the least sure first.
            rank = predictions.confidence[members] * (-1 if is_sure else 1)
            found.append(
                Quadrant(
                    f"{'Right' if right else 'Wrong'} and {'sure' if is_sure else 'unsure'}",
                    members[np.argsort(rank, kind="stable")],
                    float(predictions.losses[members].mean()) if len(members) else None,
                )
            )
    return tuple(found)


def quadrant_blocks(predictions: Predictions, dataset: Dataset | None, album: Album) -> Iterator[Block]:
    """A table of the four quadrants, and examples of each if there are images."""
    found = quadrants(predictions)
    total = len(predictions)
    yield Table(
        "Right or wrong, sure or unsure",
        ("quadrant", "test images", "share", "mean loss"),
        tuple(
            (
                quadrant.name,
                f"{len(quadrant.members):,}",
                percent(len(quadrant.members) / total),
                "none" if quadrant.mean_loss is None else f"{quadrant.mean_loss:.3f}",
            )
            for quadrant in found
        ),
        caption=f"Sure: a probability of {SURE:.0%} or more. The loss is the cross-entropy in nats.",
    )
    if dataset is None:
        return
    galleries = [_gallery(quadrant, predictions, dataset, album) for quadrant in found]
    yield Row((galleries[0], galleries[1]))
    yield Row((galleries[2], galleries[3]))
    if not len(found[2].members):
        yield Prose(("No wrong prediction is sure.",))


def _gallery(quadrant: Quadrant, predictions: Predictions, dataset: Dataset, album: Album) -> Gallery:
    count = len(quadrant.members)
    loss = "" if quadrant.mean_loss is None else f", mean loss {quadrant.mean_loss:.3f}"
    return Gallery(
        quadrant.name,
        predicted_photos(album, dataset, predictions, quadrant.members[:_EXAMPLES]),
        caption=f"{count:,} {'image' if count == 1 else 'images'}{loss}",
        size="small",
        name=f"quadrant-{quadrant.name.lower().replace(' and ', '-')}",
    )
