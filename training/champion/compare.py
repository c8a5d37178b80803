"""Finds the champion, and runs it on the challenger's test images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import STABLE_ALIAS, Bundle, Repository, reference_of
from serving.errors import LenserveError, ProofFailed
from serving.limited_files import describe_failure
from training import data
from training.champion.drift import largest_drift
from training.champion.judge import Answers, ChampionCheck, Compared, judge
from training.champion.knowledge import Knowledge, knowledge_of, relabelled_since
from training.champion.known_images import first_of_equal
from training.champion.recorded import read_recorded_by
from training.champion.result import CHAMPION_RUNS, Challenge
from training.data import Dataset
from training.data.relabelled import Relabelled
from training.data.storage.disk_images import Images
from training.evaluation.calibrate import debiased_calibration_error
from training.evaluation.onnx_session import open_session, run
from training.recipe import Recipe

_ROUNDS = 200  # timed runs of each file
_BUDGET_S = 2.0  # for all of them
_MAX_LABELS = 5  # in a message
_MAX_REASON = 300  # characters of an error of ONNX Runtime

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Challenger:
    """A proven version that is not published yet."""

    recipe: Recipe
    model_file: Path
    dataset: Dataset
    probabilities: Floats  # (N, K) on the test split
    groups: Sequence[str] | None = None  # N, such as patients; None: images are independent
    seen: int = 0  # test images that look like training or validation images


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a comparison, and what the champion predicts."""

    challenge: Challenge
    champion: Bundle | None = None
    predicted: npt.NDArray[np.int64] | None = None  # (N,) labels of the challenger; None: not comparable


def challenge_champion(
    repository: Repository,
    model: str,
    challenger: Challenger,
    *,
    data_root: Path | None = None,
    cache: Path | None = None,
    force: bool = False,
) -> Outcome:
    """Compare a challenger with the version that is served by default.

    Args:
        repository: where the champion is.
        model: name of both.
        challenger: the new version.
        data_root: directory of the test images; read again if the champion has another geometry.
        cache: directory of decoded images.
        force: promote the challenger whatever the verdict.

    Raises:
        BundleError: aliases.json is invalid.
        OSError, StoreError: the repository cannot be read.
    """
    stable = repository.aliases(model).get(STABLE_ALIAS)
    number = _number_of_champion(repository, model, stable)
    if number is None:
        return Outcome(Challenge(verdict="promote", champion=None, stable=0))
    outcome = _compare_with(repository, model, number, challenger, data_root=data_root, cache=cache)
    challenge = outcome.challenge
    if not (challenge.champion_runs or stable or force):
        challenge = _unpublished(challenge)
    found = {"stable": stable or 0, "forced": force and challenge.verdict != "promote"}
    return replace(outcome, challenge=challenge.model_copy(update=found))


def find_champion(repository: Repository, model: str, stable: int | None) -> Bundle | None:
    """Read the version that is served by default; None if the model has no versions.

    Args:
        repository: where it is.
        model: its name.
        stable: version that the alias `stable` names; None: there is no such alias.

    Raises:
        LenserveError, OSError: that version is missing or damaged, or cannot be read now.
    """
    number = _number_of_champion(repository, model, stable)
    return None if number is None else repository.read(model, number)


def _number_of_champion(repository: Repository, model: str, stable: int | None) -> int | None:
    # Without `stable` the newest, also if it is damaged and an older one is not: servers that started before
    # still answer with it from memory, and a version that was compared with the older one would replace it.
    return stable or next(reversed(repository.versions(model)), None)


def _compare_with(
    repository: Repository,
    model: str,
    number: int,
    challenger: Challenger,
    *,
    data_root: Path | None,
    cache: Path | None,
) -> Outcome:
    try:
        champion = repository.read(model, number)
    except (LenserveError, OSError) as error:
        return Outcome(_not_comparable(number, "the champion can be read", describe_failure(error)))
    try:
        _prove(champion)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common base
        return Outcome(_does_not_run(champion, error), champion)
    return replace(_compare(champion, challenger, data_root, cache), champion=champion)


def _compare(champion: Bundle, challenger: Challenger, data_root: Path | None, cache: Path | None) -> Outcome:
    labels, theirs = challenger.dataset.labels, champion.manifest.labels
    if other := other_labels(labels, theirs):
        return Outcome(_not_comparable(champion.version, "same labels", other))
    test = challenger.dataset.test
    theirs_now = _in_geometry_of(champion, challenger, data_root, cache)
    images = theirs_now.test.images
    if len(images) != len(test):
        detail = f"{len(images)} in the champion's geometry, {len(test)} in that of the challenger"
        return Outcome(_not_comparable(champion.version, "same test images", detail))
    try:
        answers, _ = run(open_session(champion.model_file), images)  # (N, K) in the champion's order
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common base
        return Outcome(_does_not_run(champion, error))
    answers = answers[:, [theirs.index(label) for label in labels]]
    predicted: npt.NDArray[np.int64] = answers.argmax(axis=1)
    knowledge = knowledge_of(champion, challenger.dataset, images)
    new = knowledge.new
    if not len(new):
        detail = f"none of {len(test)}: add images, or promote by hand"
        return Outcome(
            _not_comparable(champion.version, "test images new to the champion", detail), None, predicted
        )
    knowledge = replace(knowledge, new=first_of_equal(test.images, new))
    relabelled = relabelled_since(champion, theirs_now)
    compared = replace(
        _measure(champion, challenger, answers, images, knowledge, relabelled),
        repeated=len(new) - len(knowledge.new),
    )
    verdict, checks = judge(compared, challenger.recipe.champion)
    challenge = Challenge(
        verdict=verdict,
        champion=champion.version,
        images=len(knowledge.new),
        left_out=len(test) - len(new),
        repeated=compared.repeated,
        accuracy=float(compared.challenger.correct.mean()),
        champion_accuracy=float(compared.champion.correct.mean()),
        checks=checks,
    )
    return Outcome(challenge, None, predicted)


def _prove(champion: Bundle) -> None:
    """Load a champion and run its golden examples: whether servers can is not sure otherwise.

    Raises:
        Exception: it does not load, does not run, or answers otherwise than it should.
    """
    golden, tolerance = champion.golden(), champion.manifest.golden_tolerance
    probabilities, _ = run(open_session(champion.model_file), golden.images)
    difference = golden.largest_difference(probabilities)
    if difference > tolerance:
        raise ProofFailed(
            f"golden probabilities differ by {difference:.2g}, the tolerance is {tolerance:.2g}"
        )


def _does_not_run(champion: Bundle, error: Exception) -> Challenge:
    return _not_comparable(champion.version, CHAMPION_RUNS, " ".join(str(error).split())[:_MAX_REASON])


def _unpublished(challenge: Challenge) -> Challenge:
    """Say that `keep_champion` will refuse to publish the version."""
    consequence = f"; nothing is published until the alias {STABLE_ALIAS!r} names a version"
    checks = [check.model_copy(update={"detail": check.detail + consequence}) for check in challenge.checks]
    return challenge.model_copy(update={"checks": tuple(checks)})


def _measure(  # noqa: PLR0917 - both sides, and the images
    champion: Bundle,
    challenger: Challenger,
    answers: Floats,
    images: Images,
    knowledge: Knowledge,
    relabelled: Relabelled | None,
) -> Compared:
    test, dataset, new = challenger.dataset.test, challenger.dataset, knowledge.new
    trained_now = {
        label: int((dataset.train.labels == index).sum()) for index, label in enumerate(dataset.labels)
    }
    recorded = read_recorded_by(champion)
    drift, drift_of = largest_drift(
        trained_now,
        recorded.trained,
        # In the order of the champion's labels, as its reference.
        reference_of(answers[new][:, [dataset.labels.index(label) for label in champion.manifest.labels]]),
        champion.manifest.reference,
    )
    return Compared(
        challenger=_answers(challenger.probabilities[new], test.labels[new]),
        champion=_answers(answers[new], test.labels[new]),
        truth=test.labels[new],
        labels=dataset.labels,
        groups=None if challenger.groups is None else [challenger.groups[index] for index in new],
        latency_ratio=_latency_ratio(
            (challenger.model_file, test.images[:1]), (champion.model_file, images[:1])
        ),
        size_ratio=challenger.model_file.stat().st_size / champion.model_file.stat().st_size,
        drift=drift,
        drift_of=drift_of,
        seen=challenger.seen / len(test),
        may_know_images=knowledge.why_uncertain,
        relabelled=relabelled,
        recorded_accuracy=recorded.accuracy,
        recorded_recalls=recorded.recalls,
    )


def _answers(probabilities: Floats, truth: npt.NDArray[np.int64]) -> Answers:
    return Answers(probabilities.argmax(axis=1) == truth, debiased_calibration_error(probabilities, truth))


def _in_geometry_of(
    champion: Bundle, challenger: Challenger, data_root: Path | None, cache: Path | None
) -> Dataset:
    """The challenger's images in the champion's geometry, in the same order."""
    if champion.manifest.geometry == challenger.recipe.geometry:
        return challenger.dataset
    return data.load_unchecked(challenger.recipe.data, champion.manifest.geometry, data_root, cache)


def _latency_ratio(challenger: tuple[Path, Images], champion: tuple[Path, Images]) -> float:
    """Time both files in turn on one image; the fastest run of each counts: other work disturbs it least."""
    sessions = [(open_session(file), {"image": image[:1]}) for file, image in (challenger, champion)]
    fastest = [float("inf")] * 2
    began_s = time.perf_counter()
    for number in range(_ROUNDS + 1):
        for index, (session, feed) in enumerate(sessions):
            start_s = time.perf_counter()
            session.run(["probabilities"], feed)
            if number:  # the first one allocates memory
                fastest[index] = min(fastest[index], time.perf_counter() - start_s)
        if number and time.perf_counter() - began_s > _BUDGET_S:
            break
    return fastest[0] / fastest[1]


def other_labels(labels: Sequence[str], theirs: Sequence[str]) -> str:
    """Say which labels are new or missing; "" if both have the same ones."""
    added, gone = sorted(set(labels) - set(theirs)), sorted(set(theirs) - set(labels))
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:_MAX_LABELS])})"
        for what, names in (("new", added), ("missing", gone))
        if names
    )


def _not_comparable(champion: int, name: str, detail: str) -> Challenge:
    check = ChampionCheck(name=name, passed=False, detail=detail, at_best="candidate")
    return Challenge(verdict="candidate", champion=champion, checks=(check,))
