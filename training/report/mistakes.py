"""What the network gets wrong: errors by label, mistakes, confused pairs, labels to check."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from training.data import Dataset
from training.report.album import Album
from training.report.blocks import Block, Cell, Gallery, Photo, Prose, Row, Section, Table
from training.report.evidence import Evidence
from training.report.galleries import (
    percent,
    predicted_photo,
    predicted_photos,
    random_predictions,
    random_training_images,
)
from training.report.predictions import Predictions
from training.report.quadrants import quadrant_blocks

_MOST_MISTAKES = 24
_MOST_LABELS = 12  # rows of the breakdown
_MOST_PAIRS = 5
_MOST_OF_PAIR = 4  # mistakes of each direction
_MOST_SUSPECTS = 12
_SUSPECT_CONFIDENCE = 0.9
_NAMED_CONFUSIONS = 3


def mistakes_section(evidence: Evidence, album: Album) -> Section:
    """The section, without images where they are not to be shown or not to be had."""
    test = evidence.test
    if test is None:
        return Section("mistakes", "What it gets wrong", ())
    dataset = evidence.shown
    wrong = int((~test.correct).sum())
    blocks: list[Block] = []
    if wrong:
        blocks.append(Row((errors_by_label(test), confused_table(test, 2 * _MOST_PAIRS))))
    if dataset is None:
        why = (
            "The recipe leaves images out of the report (report.images = none)."
            if not evidence.shows_images
            else "The images are shown where the data are at hand: lenserve-train report ... --data-root."
        )
        blocks += [*quadrant_blocks(test, None, album), Prose((why,))]
    else:
        blocks += _illustrated(evidence, test, dataset, album)
    lead = (
        f"{wrong:,} of {len(test):,} test images ({percent(wrong / len(test))}) have a wrong prediction."
        if wrong
        else f"None of the {len(test):,} test images has a wrong prediction."
    )
    return Section("mistakes", "What it gets wrong", tuple(blocks), lead)


def errors_by_label(predictions: Predictions) -> Table:
    """The labels with the largest share of errors, and what is predicted instead."""
    labels, truth = predictions.labels, predictions.truth
    confused = defaultdict(dict)  # type: defaultdict[int, dict[int, int]]
    for true, predicted, count in confusions(predictions):
        confused[true][predicted] = count
    images = np.bincount(truth, minlength=len(labels))  # (K,)
    rows = sorted(confused, key=lambda label: (-sum(confused[label].values()) / images[label], label))
    shown = [(label, sum(confused[label].values())) for label in rows[:_MOST_LABELS]]
    most = max(count / images[label] for label, count in shown)
    left = f" {len(rows) - _MOST_LABELS} more labels have errors." if len(rows) > _MOST_LABELS else ""
    return Table(
        "Errors by label",
        ("true label", "test images", "wrong", "share wrong", "predicted instead"),
        tuple(
            (
                labels[label],
                f"{images[label]:,}",
                f"{count:,}",
                Cell(f"{count / images[label]:.1%}", count / images[label] / most, "bad"),
                _named(confused[label], labels),
            )
            for label, count in shown
        ),
        frozenset({0, 4}),
        caption=f"Labels without an error are left out.{left}",
    )


def confusions(predictions: Predictions) -> list[tuple[int, int, int]]:
    """True label, predicted label and number of images of every kind of error, the most frequent first."""
    wrong = ~predictions.correct
    pairs, counts = np.unique(
        np.stack([predictions.truth[wrong], predictions.predicted[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[i][0]), int(pairs[i][1]), int(counts[i])) for i in order]


def confused_table(predictions: Predictions, most: int) -> Table:
    """The most frequent kinds of error."""
    labels = predictions.labels
    images = np.bincount(predictions.truth, minlength=len(labels))
    return Table(
        "Most frequent confusions",
        ("true label", "predicted", "images", "share of the true label"),
        tuple(
            (labels[true], labels[other], f"{count:,}", f"{count / images[true]:.1%}")
            for true, other, count in confusions(predictions)[:most]
        ),
        frozenset({0, 1}),
    )


def varied_mistakes(predictions: Predictions, most: int = _MOST_MISTAKES) -> list[int]:
    """Wrong predictions of every kind in turn, the most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    ranked = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")].tolist()
    seen: dict[tuple[int, int], int] = defaultdict(int)
    turns = []
    for index in ranked:
        kind = int(predictions.truth[index]), int(predictions.predicted[index])
        turns.append((seen[kind], index))
        seen[kind] += 1
    # Sorting is stable: within a turn the most confident come first.
    return [index for _, index in sorted(turns, key=lambda turn: turn[0])[:most]]


def suspects(predictions: Predictions) -> npt.NDArray[np.intp]:
    """Confident disagreements with the label, the least probable label first: their labels may be wrong."""
    found = np.flatnonzero(~predictions.correct & (predictions.confidence >= _SUSPECT_CONFIDENCE))
    return found[np.argsort(predictions.true_probabilities[found], kind="stable")]


def _illustrated(evidence: Evidence, test: Predictions, dataset: Dataset, album: Album) -> Iterator[Block]:
    mistakes = varied_mistakes(test)
    if mistakes:
        yield Gallery(
            "Mistakes",
            predicted_photos(album, dataset, test, mistakes),
            caption="Every kind of error in turn, the most confident first.",
            size="large",
            name="mistakes",
        )
        yield from _pairs(test, dataset, album)
    grids: list[Block] = [random_predictions(album, dataset, test)]
    if len(dataset.train):
        grids.append(random_training_images(album, dataset))
    yield Row(tuple(grids))
    yield from quadrant_blocks(test, dataset, album)
    yield from _suspect_gallery(evidence, dataset, album)


def _pairs(test: Predictions, dataset: Dataset, album: Album) -> Iterator[Block]:
    """The most confused pairs of labels: mistakes of both directions, and a correct image of each label.

    Pairs with a single mistake are left out: the gallery of mistakes has it.
    """
    total: dict[tuple[int, int], int] = defaultdict(int)
    for true, other, count in confusions(test):
        total[min(true, other), max(true, other)] += count
    ranked = sorted(total, key=lambda pair: -total[pair])[:_MOST_PAIRS]
    for one, other in (pair for pair in ranked if total[pair] > 1):
        names = test.labels[one], test.labels[other]
        photos: list[Photo] = []
        for true, predicted in ((one, other), (other, one)):
            found = np.flatnonzero((test.truth == true) & (test.predicted == predicted))
            found = found[np.argsort(-test.confidence[found], kind="stable")][:_MOST_OF_PAIR]
            photos += predicted_photos(album, dataset, test, found)
        for label in (one, other):
            correct = np.flatnonzero((test.truth == label) & test.correct)
            if len(correct):
                typical = correct[np.argsort(test.confidence[correct], kind="stable")[len(correct) // 2]]
                photos.append(predicted_photo(album, dataset, test, int(typical)))
        yield Gallery(
            f"{names[0]} and {names[1]}: {total[one, other]:,} confused",
            tuple(photos),
            caption="The last ones are correct, for comparison." if photos[-1].tone == "good" else "",
        )


def _suspect_gallery(evidence: Evidence, dataset: Dataset, album: Album) -> Iterator[Block]:
    photos: list[Photo] = []
    for split, predictions in evidence.predictions.items():
        if len(dataset.splits()[split]) == len(predictions):
            chosen = suspects(predictions)[: _MOST_SUSPECTS // (1 if len(evidence.predictions) == 1 else 2)]
            found = predicted_photos(album, dataset, predictions, chosen, split)
            photos += [_with_path(photo, split) for photo in found]
    if photos:
        yield Gallery(
            "Labels to check",
            tuple(photos),
            caption=f"The network is at least {_SUSPECT_CONFIDENCE:.0%} sure of another label. Some of these "
            "are its errors; others may be errors of the data. All are in predictions.csv.",
            size="large",
            name="labels-to-check",
        )


def _with_path(photo: Photo, split: str) -> Photo:
    where = photo.hover if photo.hover.startswith(split) else f"{split}: {photo.hover}"
    return Photo(photo.image, photo.alt, (*photo.lines, where), photo.tone, photo.hover)


def _named(counts: "dict[int, int]", labels: Sequence[str]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{labels[label]} ({count:,})" for label, count in ranked[:_NAMED_CONFUSIONS]]
    return ", ".join(shown) + (" …" if len(ranked) > _NAMED_CONFUSIONS else "")
