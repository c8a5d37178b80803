"""Decides what becomes of a challenger. Pure: measurements of both in, a verdict with its reasons out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from serving.bundle.manifest import Strict
from serving.counted import counted
from training.champion.paired import effective, images_if_equal, lowest_difference, p_worse, pair_of
from training.data.relabelled import Relabelled
from training.recipe import ChampionRecipe

Verdict = Literal["promote", "candidate", "refuse"]

# One equal challenger in twenty may be refused: half of that by its accuracy, half by that of its labels.
_ALPHA = 0.025
_MAX_NAMED = 5  # labels in a message
_MAX_SEEN = 0.05  # share of test images like training images; of CIFAR-10's 3.3 % are (Barz and Denzler 2020)
MIN_LABEL_IMAGES = 5  # with fewer, not even a label that is never right any more is a significant loss
MIN_RECALL_IMAGES = 10  # of a label, then and now: with fewer its recall can halve by chance


class ChampionCheck(Strict):
    """One comparison with the champion."""

    name: str
    passed: bool
    detail: str
    at_best: Literal["candidate", "refuse"] = Field(description="the best verdict if it fails")


@dataclass(frozen=True, slots=True)
class Answers:
    """What one of the two makes of the images that both are compared on."""

    correct: npt.NDArray[np.bool_]  # (N,)
    ece: float  # 0..1, in excess of chance


@dataclass(frozen=True, slots=True)
class Compared:
    """Both on the same images, none of which the champion was trained on."""

    challenger: Answers
    champion: Answers
    truth: npt.NDArray[np.int64]  # (N,) index into labels
    labels: Sequence[str]
    groups: Sequence[str] | None = None  # N, such as patients; None: images are independent
    seen: float = 0.0  # share of the test images that look like one that the challenger was trained on
    repeated: int = 0  # further test images, equal to one of these; left out
    latency_ratio: float = 1.0  # time of the challenger for one image, relative
    size_ratio: float = 1.0
    drift: float = 0.0  # population stability index
    drift_of: str = ""  # what has drifted
    may_know_images: str = ""  # why the champion may have been trained on some of the images
    relabelled: Relabelled | None = None  # images that the champion knows; None: it does not record labels
    recorded_accuracy: float | None = None  # of the champion on its own test images, 0..1
    recorded_recalls: Mapping[str, float] = field(default_factory=dict)  # label -> the same, 0..1


def judge(compared: Compared, limits: ChampionRecipe) -> tuple[Verdict, tuple[ChampionCheck, ...]]:
    """Compare a challenger with its champion.

    Returns: `refuse` if it is proven worse, overall or for one label; `promote` if it is proven not to be
        worse than the margin, and nothing else speaks against it; otherwise `candidate`.
    """
    checks = tuple(_checks(compared, limits))
    failed = {check.at_best for check in checks if not check.passed}
    # A champion that was trained on some of these images looks better than it is.
    if "refuse" in failed and not compared.may_know_images:
        return "refuse", checks
    return ("candidate" if failed else "promote"), checks


def _checks(compared: Compared, limits: ChampionRecipe) -> Iterator[ChampionCheck]:
    # 1. What may refuse, 2. what may only make a candidate.
    yield _accuracy(compared, limits)
    yield _labels(compared, limits)
    if compared.relabelled is None or compared.relabelled.images:
        yield _same_truth(compared.relabelled, limits)
    if compared.recorded_accuracy is not None:
        yield _as_recorded(compared, compared.recorded_accuracy, limits)
    if compared.may_know_images:
        yield ChampionCheck(
            name="test images that the champion was not trained on",
            passed=False,
            detail=compared.may_know_images,
            at_best="candidate",
        )
    if compared.seen:
        yield _unseen(compared.seen)
    challenger, champion = compared.challenger, compared.champion
    yield _at_most(
        "calibration error",
        challenger.ece - champion.ece,
        limits.max_ece_rise,
        f"{challenger.ece:.3f}, champion {champion.ece:.3f}, maximum rise {limits.max_ece_rise:g} "
        "(champion.max_ece_rise)",
    )
    yield _at_most(
        "latency of one image",
        compared.latency_ratio,
        limits.max_latency_ratio,
        f"{compared.latency_ratio:.2f} of the champion's, maximum {limits.max_latency_ratio:g} "
        "(champion.max_latency_ratio)",
    )
    yield _at_most(
        "size of the file",
        compared.size_ratio,
        limits.max_size_ratio,
        f"{compared.size_ratio:.2f} of the champion's, maximum {limits.max_size_ratio:g} "
        "(champion.max_size_ratio)",
    )
    yield _at_most(
        "drift of the data",
        compared.drift,
        limits.max_drift,
        f"population stability index {compared.drift:.3f}"
        f"{f' of {compared.drift_of}' if compared.drift_of else ''}, maximum {limits.max_drift:g} "
        "(champion.max_drift)",
    )


def _accuracy(compared: Compared, limits: ChampionRecipe) -> ChampionCheck:
    challenger, champion = compared.challenger.correct, compared.champion.correct
    both = pair_of(challenger, champion)
    pair = effective(both, challenger, champion, compared.groups)
    lowest = lowest_difference(pair)
    repeated = f" ({counted(compared.repeated, 'equal image')} left out)" if compared.repeated else ""
    detail = (
        f"{_signed(pair.difference)} points on {counted(len(champion), 'image')}{repeated}: "
        f"{both.gained:,} gained, "
        f"{both.lost:,} lost; with 95 % confidence at least {_signed(lowest)} points"
    )
    if lowest >= -limits.max_accuracy_loss:
        return ChampionCheck(name="accuracy", passed=True, detail=detail, at_best="refuse")
    allowed = f"allowed {_signed(-limits.max_accuracy_loss)} (champion.max_accuracy_loss)"
    p = p_worse(pair)
    if p < _ALPHA:
        worse = f"{detail}, {allowed}; it is worse (McNemar's exact test, p = {p:.2g})"
        return ChampionCheck(name="accuracy", passed=False, detail=worse, at_best="refuse")
    needed = images_if_equal(limits.max_accuracy_loss)
    enough = (
        f"; {math.ceil(needed):,} would do if both answered alike" if pair.images < needed < math.inf else ""
    )
    unknown = f"{detail}, {allowed}: " + (
        "unclear while the labels of images have changed"
        if is_relabelled(compared.relabelled, limits)
        else f"too few images to tell{enough}. Add test images, set a larger champion.max_accuracy_loss, or "
        "promote it by hand"
    )
    return ChampionCheck(name="accuracy", passed=False, detail=unknown, at_best="candidate")


def _labels(compared: Compared, limits: ChampionRecipe) -> ChampionCheck:
    """Find labels whose recall is proven to have fallen: McNemar's exact test, Bonferroni's correction."""
    tested = [
        label for label in np.unique(compared.truth) if (compared.truth == label).sum() >= MIN_LABEL_IMAGES
    ]
    worse = []
    for label in map(int, tested):
        members = np.flatnonzero(compared.truth == label)
        challenger, champion = compared.challenger.correct[members], compared.champion.correct[members]
        groups = None if compared.groups is None else [compared.groups[index] for index in members.tolist()]
        both = pair_of(challenger, champion)
        pair = effective(both, challenger, champion, groups)
        if -pair.difference > limits.max_recall_loss and p_worse(pair) < _ALPHA / len(tested):
            worse.append((pair.difference, compared.labels[label], challenger.mean(), champion.mean()))
    if not worse:
        return ChampionCheck(
            name="recall of every label",
            passed=True,
            detail=f"none of {len(tested)} is proven to be worse",
            at_best="refuse",
        )
    named = ", ".join(
        f"{label!r} {now:.2f}, champion {before:.2f}" for _, label, now, before in sorted(worse)[:_MAX_NAMED]
    )
    more = f" and {len(worse) - _MAX_NAMED} more" if len(worse) > _MAX_NAMED else ""
    return ChampionCheck(
        name="recall of every label",
        passed=False,
        detail=f"{named}{more}; maximum loss {limits.max_recall_loss:g} (champion.max_recall_loss)",
        at_best="refuse",
    )


def is_relabelled(relabelled: Relabelled | None, limits: ChampionRecipe) -> bool:
    """Whether more images than allowed have another label than the one that the champion learnt."""
    return relabelled is not None and relabelled.largest_share(MIN_LABEL_IMAGES) > limits.max_relabelled


def _same_truth(relabelled: Relabelled | None, limits: ChampionRecipe) -> ChampionCheck:
    if relabelled is None:
        return ChampionCheck(
            name="labels of known images",
            passed=True,
            detail="not compared: the champion does not record the labels of its images",
            at_best="candidate",
        )
    failed = is_relabelled(relabelled, limits)
    detail = f"{relabelled}; maximum {100 * limits.max_relabelled:g} % of any label (champion.max_relabelled)"
    if failed:
        detail += ". If the new labels are right, promote it by hand; otherwise correct them"
    return ChampionCheck(name="labels of known images", passed=not failed, detail=detail, at_best="candidate")


def _unseen(seen: float) -> ChampionCheck:
    """Not all copies look alike enough to be found, so none are left out of the comparison instead."""
    detail = (
        f"{100 * seen:.1f} % look like training or validation images of the new version, maximum "
        f"{100 * _MAX_SEEN:g} %"
    )
    if seen > _MAX_SEEN:
        detail += (
            ". Keep the copies of an image in one split with data.group_pattern, or set "
            "data.near_duplicates=remove"
        )
    return _at_most("test images new to this version", seen, _MAX_SEEN, detail)


def _as_recorded(compared: Compared, recorded: float, limits: ChampionRecipe) -> ChampionCheck:
    """Find images that the champion takes for others: a challenger that learnt wrong labels seems to gain."""
    accuracy = float(compared.champion.correct.mean())
    lost = _lost_recalls(compared, 2 * limits.max_champion_loss)
    failed = bool(lost) or recorded - accuracy > limits.max_champion_loss
    detail = f"accuracy {100 * accuracy:.1f} %, on its own test images {100 * recorded:.1f} %"
    if lost:
        more = f" and {len(lost) - _MAX_NAMED} more" if len(lost) > _MAX_NAMED else ""
        detail += f"; recall of {', '.join(lost[:_MAX_NAMED])}{more}"
    if failed:
        detail += (
            f"; maximum loss {100 * limits.max_champion_loss:g} points, twice that for one label "
            "(champion.max_champion_loss). These images are labelled otherwise than the champion's, or of "
            "another kind: look at the report's mistakes. If the labels are right, promote it by hand"
        )
    return ChampionCheck(
        name="the champion on these images", passed=not failed, detail=detail, at_best="candidate"
    )


def _lost_recalls(compared: Compared, limit: float) -> list[str]:
    """Describe the labels whose recall by the champion is lower than it recorded by more than the limit."""
    lost = []
    for index, label in enumerate(compared.labels):
        members, recorded = compared.truth == index, compared.recorded_recalls.get(label)
        if recorded is not None and members.sum() >= MIN_RECALL_IMAGES:
            recall = float(compared.champion.correct[members].mean())
            if recorded - recall > limit:
                lost.append(f"{label!r} {recall:.2f}, before {recorded:.2f}")
    return lost


def _at_most(name: str, value: float, limit: float, detail: str) -> ChampionCheck:
    return ChampionCheck(name=name, passed=value <= limit, detail=detail, at_best="candidate")


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}"
