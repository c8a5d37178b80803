"""Images of the data with captions, for galleries."""

from collections.abc import Sequence

import numpy as np

from training.data import Dataset
from training.data.splits import Indices
from training.report.album import Album
from training.report.blocks import Gallery, Photo
from training.report.evidence import TEST, TRAIN
from training.report.predictions import Predictions, readable

_SIDE = 5  # of the square grids


def percent(share: float) -> str:
    """A share as people read it; small ones and nearly all of it with one digit more, never a false 100%."""
    if 0 < share < 0.1 or 0.99 < share < 1:  # noqa: PLR2004
        return f"{min(max(share, 0.001), 0.999):.1%}"
    return f"{share:.0%}"


def predicted_photo(
    album: Album, dataset: Dataset, predictions: Predictions, index: int, split: str = TEST
) -> Photo:
    """An image with its prediction and, if that is wrong, its true label."""
    labels = predictions.labels
    true, predicted = labels[predictions.truth[index]], labels[predictions.predicted[index]]
    confidence = percent(float(predictions.confidence[index]))
    correct = true == predicted
    name = predictions.names[index]
    return Photo(
        image=album.add(split, dataset.splits()[split], index),
        alt=f"{split} image {name}: true {true}, predicted {predicted} ({confidence})",
        lines=(f"{predicted}, {confidence}",) if correct else (f"{predicted}, {confidence}", f"true {true}"),
        tone="good" if correct else "bad",
        hover=name,
    )


def predicted_photos(
    album: Album,
    dataset: Dataset,
    predictions: Predictions,
    indices: Sequence[int] | Indices,
    split: str = TEST,
) -> tuple[Photo, ...]:
    """`predicted_photo` for several images."""
    return tuple(predicted_photo(album, dataset, predictions, int(index), split) for index in indices)


def random_predictions(album: Album, dataset: Dataset, predictions: Predictions) -> Gallery:
    """25 test images, chosen at random, with what was predicted for them."""
    photos = predicted_photos(album, dataset, predictions, _random(len(predictions)))
    wrong = sum(photo.tone == "bad" for photo in photos)
    return Gallery(
        f"{len(photos)} test images and their predictions",
        photos,
        caption=f"Chosen at random, not by result. Wrong: {wrong} of {len(photos)}.",
        size="small",
        columns=_SIDE,
        name="predictions",
    )


def random_training_images(album: Album, dataset: Dataset) -> Gallery:
    """25 training images, chosen at random, with their labels."""
    train = dataset.train
    photos = tuple(
        Photo(
            image=album.add(TRAIN, train, index),
            alt=f"training image {readable(train.names[index])}: {dataset.labels[train.labels[index]]}",
            lines=(dataset.labels[train.labels[index]],),
            hover=readable(train.names[index]),
        )
        for index in _random(len(train))
    )
    return Gallery(
        f"{len(photos)} training images and their labels",
        photos,
        caption="Chosen at random, as the network receives them, before augmentation.",
        size="small",
        columns=_SIDE,
        name="training-images",
    )


def _random(count: int) -> list[int]:
    chosen: list[int] = np.random.default_rng(0).permutation(count)[: _SIDE**2].tolist()
    return chosen
