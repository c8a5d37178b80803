"""Champions run on the images of their challengers: known images, other labels, what cannot be compared."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from serving.bundle import MODEL_FILE, Description, Repository
from serving.bundle.manifest import MANIFEST_FILE
from serving.bundle.reference import reference_of
from serving.bundle.store import Store
from serving.bundle.stored_repository import StoredRepository
from tests.colours import LABELS, SIDE, write_colours
from tests.serving.bundle.fake_s3 import FakeS3
from training.champion.compare import Challenger, Outcome, challenge_champion
from training.champion.knowledge import knowledge_of, relabelled_since
from training.champion.known_images import KNOWN_IMAGES_FILE, write_known_images
from training.data import Dataset
from training.data.assignment import SPLITS_FILE, write_assignment
from training.data.splits import Split
from training.evaluation.onnx_session import open_session, run
from training.recipe import resolve

MODEL = "colours"
RECIPE = resolve(
    "lenet5-fake",
    [f"geometry.height={SIDE}", f"geometry.width={SIDE}", "geometry.channels=3", "geometry.background=255"],
)


def _split(count: int, seed: int, *, files: bool = False) -> Split:
    """Dark noise with one strong channel, which is the label."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(LABELS)
    images = random.integers(0, 100, (count, SIDE, SIDE, 3), np.uint8)  # (N, H, W, C)
    images[np.arange(count), :, :, labels] += 150
    names = tuple(f"{seed}-{number}" for number in range(count))
    digests = tuple(f"{name:>032}".encode() for name in names) if files else ()
    return Split(images, labels, names, digests)


def _dataset(*, files: bool = False, test: int = 300) -> Dataset:
    return Dataset(
        LABELS,
        _split(90, 1, files=files),
        _split(30, 2, files=files),
        _split(test, 3, files=files),
    )


def _publish(
    repository: Repository, known: Dataset | None, *, rotate: int = 0, data_digest: str = "0" * 64
) -> None:
    def write(folder: Path) -> Description:
        described = write_colours(folder, rotate=rotate, lie=False)
        (folder / "report").mkdir()
        if known is not None:
            write_known_images(known, folder / "report" / KNOWN_IMAGES_FILE)
        if known is not None and known.train.digests:
            write_assignment(known, folder / "report" / SPLITS_FILE)
        made = described.provenance.model_copy(update={"data_digest": data_digest})
        return described.model_copy(update={"provenance": made})

    repository.publish(MODEL, write)


def _challenger(folder: Path, dataset: Dataset, *, confused: bool = False) -> Challenger:
    """The same network; confused: it takes green for red."""
    write_colours(folder, rotate=0, lie=False)
    path = folder / MODEL_FILE
    if confused:
        graph = onnx.load(path)
        (weights,) = [each for each in graph.graph.initializer if each.name == "weights"]
        matrix: npt.NDArray[np.float32] = numpy_helper.to_array(weights).copy()
        matrix[1] = matrix[0]
        weights.CopyFrom(numpy_helper.from_array(matrix, "weights"))
        onnx.save(graph, path)
    probabilities, _ = run(open_session(path), dataset.test.images)
    return Challenger(RECIPE, path, dataset, probabilities)


def _challenge(
    repository: Repository, folder: Path, dataset: Dataset, *, confused: bool = False, force: bool = False
) -> Outcome:
    return challenge_champion(repository, MODEL, _challenger(folder, dataset, confused=confused), force=force)


def test_a_first_version_has_no_champion(repository: Repository, tmp_path: Path) -> None:
    """It is promoted without a comparison."""
    outcome = _challenge(repository, tmp_path, _dataset())
    assert (outcome.challenge.verdict, outcome.challenge.champion, outcome.challenge.checks) == (
        "promote",
        None,
        (),
    )


def test_stable_is_the_champion_and_the_newest_without_it(repository: Repository, tmp_path: Path) -> None:
    """A network that is always wrong is no obstacle, unless it is the champion's place that it has."""
    dataset = _dataset()
    _publish(repository, dataset)
    _publish(repository, dataset, rotate=1)
    newest = _challenge(repository, tmp_path, dataset).challenge
    repository.set_alias(MODEL, "stable", 1)
    stable = _challenge(repository, tmp_path, dataset).challenge
    assert (newest.champion, newest.champion_accuracy, newest.accuracy) == (2, 0.0, 1.0)
    assert (stable.champion, stable.champion_accuracy, stable.verdict) == (1, 1.0, "promote")


def test_a_lost_label_is_refused_and_named(repository: Repository, tmp_path: Path) -> None:
    """--force promotes it, and that is recorded with the reasons."""
    dataset = _dataset()
    _publish(repository, dataset)
    outcome = _challenge(repository, tmp_path, dataset, confused=True)
    forced = _challenge(repository, tmp_path, dataset, confused=True, force=True).challenge
    assert (outcome.challenge.verdict, outcome.challenge.decision) == ("refuse", "refuse")
    assert any("'green' 0.00, champion 1.00" in reason for reason in outcome.challenge.reasons)
    assert (forced.verdict, forced.decision, forced.forced) == ("refuse", "promote", True)
    assert forced.for_manifest().reasons == outcome.challenge.reasons
    assert outcome.predicted is not None
    assert (outcome.predicted == dataset.test.labels).all()


@pytest.mark.parametrize("files", [True, False])
def test_images_that_the_champion_knows_are_left_out(
    repository: Repository, tmp_path: Path, *, files: bool
) -> None:
    """By the digest of their files, or of their pixels."""
    dataset = _dataset(files=files)
    known, new = dataset.test.take(np.arange(100)), dataset.test.take(np.arange(100, 300))
    _publish(repository, replace(dataset, train=known, test=new))
    challenge = _challenge(repository, tmp_path, dataset).challenge
    assert (challenge.images, challenge.left_out) == (200, 100)


@pytest.mark.parametrize("files", [True, False])
def test_equal_test_images_count_once(repository: Repository, tmp_path: Path, *, files: bool) -> None:
    """Copies prove nothing: 12 images, forty times each, are too few. Nor does one that is known count."""
    dataset = _dataset(files=files, test=13)
    _publish(repository, replace(dataset, train=dataset.test.take(np.array([12]))))
    copies = np.append(np.repeat(np.arange(12), 40), [12, 12])
    challenge = _challenge(repository, tmp_path, replace(dataset, test=dataset.test.take(copies))).challenge
    assert challenge.verdict == "candidate"
    assert (challenge.images, challenge.left_out, challenge.repeated) == (12, 2, 468)
    assert challenge.reasons[0].startswith(
        "accuracy: +0.00 points on 12 images (468 equal images left out): 0 gained, 0 lost;"
    )


def test_a_challenger_that_has_seen_its_test_images_is_a_candidate(
    repository: Repository, tmp_path: Path
) -> None:
    """Its run found training images that look like them, and kept these; the share is of all test images."""
    dataset = _dataset()
    _publish(repository, dataset)
    challenger = _challenger(tmp_path, dataset)
    few, many = (
        challenge_champion(repository, MODEL, replace(challenger, seen=seen)).challenge for seen in (15, 16)
    )
    assert (few.verdict, many.verdict) == ("promote", "candidate")
    assert many.reasons[0].startswith("test images new to this version: 5.3 % look like training or ")


def test_if_the_champion_knows_every_image_nothing_is_compared(
    repository: Repository, tmp_path: Path
) -> None:
    """The version is a candidate, which says why."""
    dataset = _dataset()
    _publish(repository, replace(dataset, validation=dataset.test))
    challenge = _challenge(repository, tmp_path, dataset).challenge
    assert challenge.verdict == "candidate"
    assert challenge.reasons == (
        "test images new to the champion: none of 300: add images, or promote by hand",
    )


def test_a_champion_that_does_not_say_what_it_knows_makes_a_candidate(
    repository: Repository, tmp_path: Path
) -> None:
    """Such as one that was imported."""
    _publish(repository, None)
    for confused in (True, False):
        challenge = _challenge(repository, tmp_path, _dataset(), confused=confused).challenge
        assert challenge.verdict == "candidate"
        assert any("does not record its training images" in reason for reason in challenge.reasons)


@pytest.mark.parametrize(
    ("files", "said"), [(True, "arrays, this one on files"), (False, "files, this one on arrays")]
)
def test_a_champion_of_the_other_kind_of_data_makes_a_candidate_that_says_so(
    repository: Repository, tmp_path: Path, *, files: bool, said: str
) -> None:
    """It does record its images, but as pixels and not as files, or the other way round."""
    _publish(repository, _dataset(files=not files))
    challenge = _challenge(repository, tmp_path, _dataset(files=files)).challenge
    assert challenge.verdict == "candidate"
    assert any(f"was trained on {said}" in reason for reason in challenge.reasons)


def test_a_champion_of_the_same_data_knows_none_of_its_test_images(
    repository: Repository, tmp_path: Path
) -> None:
    """Versions that were published before their training images were recorded are compared like that."""
    dataset = _dataset()
    _publish(repository, None, data_digest=dataset.digest())
    assert _challenge(repository, tmp_path, dataset, confused=True).challenge.verdict == "refuse"


def test_other_labels_make_a_candidate(repository: Repository, tmp_path: Path) -> None:
    """Whatever they are worth; the reason names them."""
    dataset = _dataset()
    _publish(repository, dataset)
    other = replace(dataset, labels=("red", "green", "violet"))
    challenge = _challenge(repository, tmp_path, other).challenge
    assert challenge.verdict == "candidate"
    assert challenge.reasons == ("same labels: 1 new (violet); 1 missing (blue)",)


def test_the_order_of_labels_may_differ(repository: Repository, tmp_path: Path) -> None:
    """Answers are compared by the names of labels."""
    dataset = _dataset()
    _publish(repository, dataset)
    challenger = _challenger(tmp_path, dataset)
    test = replace(dataset.test, labels=(dataset.test.labels + 1) % 3)
    turned = replace(dataset, labels=("blue", "red", "green"), test=test)
    probabilities = np.roll(challenger.probabilities, 1, axis=1)
    outcome = challenge_champion(
        repository, MODEL, replace(challenger, dataset=turned, probabilities=probabilities)
    )
    assert (outcome.challenge.accuracy, outcome.challenge.champion_accuracy) == (1.0, 1.0)


@pytest.mark.parametrize("lost", ["digests", "pixels", "both"])
def test_images_are_recognized_by_their_files_or_their_pixels(repository: Repository, lost: str) -> None:
    """A tool for labels may save files again, and another release may decode them otherwise."""
    dataset = _dataset(files=True)
    _publish(repository, replace(dataset, train=dataset.test, test=dataset.train))
    test = dataset.test
    if lost != "pixels":
        test = replace(test, digests=tuple(b"again" + digest[5:] for digest in test.digests))
    if lost != "digests":
        test = replace(test, images=np.asarray(test.images) ^ np.uint8(1))
    champion, now = repository.look_up(MODEL, 1), replace(dataset, test=test)
    assert len(knowledge_of(champion, now, test.images).new) == (300 if lost == "both" else 0)
    relabelled = relabelled_since(champion, now)
    assert relabelled is not None
    assert relabelled.images == (120 if lost == "both" else 420)


def test_a_champion_without_labels_is_compared_and_says_so(repository: Repository, tmp_path: Path) -> None:
    """Those of earlier releases: whether labels have changed cannot be seen."""
    dataset = _dataset()
    _publish(repository, None, data_digest=dataset.digest())
    challenge = _challenge(repository, tmp_path, dataset).challenge
    assert challenge.verdict == "promote"
    (check,) = [check for check in challenge.checks if check.name == "labels of known images"]
    assert check.passed
    assert check.detail == "not compared: the champion does not record the labels of its images"


@pytest.mark.parametrize("files", [True, False])
def test_exchanged_labels_make_a_candidate_that_names_them(
    repository: Repository, tmp_path: Path, *, files: bool
) -> None:
    """The challenger has learnt them, and is right on every test image where the champion is wrong."""
    dataset = _dataset(files=files)
    _publish(repository, dataset)
    other = np.array([1, 0, 2])  # label -> label
    train, validation, test = (
        replace(split, labels=other[split.labels]) for split in dataset.splits().values()
    )
    exchanged = replace(dataset, train=train, validation=validation, test=test)
    challenger = _challenger(tmp_path, exchanged)
    probabilities = challenger.probabilities[:, other]
    outcome = challenge_champion(repository, MODEL, replace(challenger, probabilities=probabilities))
    assert outcome.challenge.accuracy == 1.0
    assert outcome.challenge.champion_accuracy == pytest.approx(1 / 3)
    assert outcome.challenge.verdict == "candidate"
    reason, unlike = outcome.challenge.reasons
    images = 420
    assert unlike.startswith("the champion on these images: accuracy 33.3 %")
    assert reason.startswith(
        f"labels of known images: {images * 2 // 3} of {images} known images have another label: "
        f"'green' is now 'red' ({images // 3}), 'red' is now 'green' ({images // 3}); "
    )


def test_wrong_labels_on_unknown_images_make_a_candidate(repository: Repository, tmp_path: Path) -> None:
    """All labels are rotated, and the champion knows none of the images, such as photographs saved again."""
    known = Dataset(LABELS, _split(90, 4), _split(30, 5), _split(300, 6))
    _publish(repository, known)
    test = _split(300, 3)
    rotated = replace(_dataset(), test=replace(test, labels=(test.labels + 1) % 3))
    challenger = _challenger(tmp_path, rotated)
    probabilities = np.roll(challenger.probabilities, 1, axis=1)
    challenge = challenge_champion(
        repository, MODEL, replace(challenger, probabilities=probabilities)
    ).challenge
    assert (challenge.accuracy, challenge.champion_accuracy, challenge.verdict) == (1.0, 0.0, "candidate")
    (reason,) = challenge.reasons
    assert reason.startswith("the champion on these images: accuracy 0.0 %, on its own test images 100.0 %; ")


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("lost", ["bytes", "manifest", "file", "folder"])
def test_a_damaged_champion_makes_a_candidate(
    repository: Repository, tmp_path: Path, lost: str, *, stable: bool
) -> None:
    """Servers still answer with it from memory, so it is not replaced unseen. No version is no champion."""
    dataset = _dataset()
    _publish(repository, dataset)
    if stable:
        repository.set_alias(MODEL, "stable", 1)
    _damage(repository, 1, lost)
    challenge = _challenge(repository, tmp_path, dataset).challenge
    if lost == "folder" and not stable:
        assert (challenge.verdict, challenge.champion) == ("promote", None)
        return
    assert (challenge.verdict, challenge.champion) == ("candidate", 1)
    (reason,) = challenge.reasons
    assert reason.startswith("the champion can be read: ")


def _damage(repository: Repository, version: int, lost: str) -> None:
    folder = repository.folder(MODEL, version)
    if lost == "bytes":
        (folder / MODEL_FILE).write_bytes(b"changed")
    elif lost == "folder":
        shutil.rmtree(folder)
    else:
        (folder / (MANIFEST_FILE if lost == "manifest" else "report/known-images.npy")).unlink()


def test_without_stable_a_damaged_newest_version_is_the_champion(
    repository: Repository, tmp_path: Path
) -> None:
    """Not an older one that can be read: servers that started before answer with the newest."""
    dataset = _dataset()
    for rotate in (1, 0):
        _publish(repository, dataset, rotate=rotate)
    _damage(repository, 2, "file")
    challenge = _challenge(repository, tmp_path, dataset).challenge
    assert (challenge.verdict, challenge.champion) == ("candidate", 2)
    assert f"{repository.folder(MODEL, 2)}/report/known-images.npy cannot be read" in challenge.reasons[0]
    forced = _challenge(repository, tmp_path, dataset, force=True).challenge
    assert (forced.decision, forced.reasons) == ("promote", challenge.reasons)


def test_a_store_that_does_not_answer_makes_a_candidate(tmp_path: Path) -> None:
    """Neither an older version nor none is taken for the champion."""
    s3 = FakeS3()
    for name in ("a", "b"):
        there = StoredRepository(Store("s3://bucket", lambda _url: (s3, "bucket")), tmp_path / name)
        there.publish(MODEL, lambda folder: write_colours(folder, rotate=0, lie=False))

    def refuse(name: str, path: str) -> None:
        if "/2/" in path and name != "find":
            raise OSError("503 Slow Down")

    s3.before = refuse
    there = StoredRepository(Store("s3://bucket", lambda _url: (s3, "bucket")), tmp_path / "c")
    challenge = _challenge(there, tmp_path, _dataset()).challenge
    assert (challenge.verdict, challenge.champion) == ("candidate", 2)
    assert "503 Slow Down" in challenge.reasons[0]


def test_a_champion_that_does_not_run_makes_a_candidate(repository: Repository, tmp_path: Path) -> None:
    """Its digests hold, but the ONNX Runtime here cannot load it: hours of training are not lost for that."""

    def write(folder: Path) -> Description:
        described = write_colours(folder, rotate=0, lie=False)
        (folder / MODEL_FILE).write_bytes(b"operators of a newer ONNX Runtime")
        return described

    repository.publish(MODEL, write)
    challenge = _challenge(repository, tmp_path, _dataset()).challenge
    assert (challenge.verdict, challenge.champion, challenge.champion_runs) == ("candidate", 1, False)
    assert "the champion runs on this machine: " in challenge.reasons[0]
    unpublished = "; nothing is published until the alias 'stable' names a version"
    assert challenge.reasons[0].endswith(unpublished)
    repository.set_alias(MODEL, "stable", 1)
    assert unpublished not in _challenge(repository, tmp_path, _dataset()).challenge.reasons[0]


def test_a_champion_that_does_not_reproduce_its_golden_examples_does_not_run(
    repository: Repository, tmp_path: Path
) -> None:
    """Servers refuse it. That is found whatever its labels are."""
    repository.publish(MODEL, lambda folder: write_colours(folder, rotate=0, lie=True))
    other = replace(_dataset(), labels=("red", "green", "violet"))
    challenge = _challenge(repository, tmp_path, other).challenge
    assert not challenge.champion_runs
    assert "golden probabilities differ by " in challenge.reasons[0]
    assert "the tolerance is " in challenge.reasons[0]


def test_a_comparison_records_what_the_alias_named(repository: Repository, tmp_path: Path) -> None:
    """0 if it did not exist: `promote` looks whether that is still so."""
    dataset = _dataset()
    first = _challenge(repository, tmp_path, dataset).challenge
    for _ in range(2):
        _publish(repository, dataset)
    without = _challenge(repository, tmp_path, dataset).challenge
    repository.set_alias(MODEL, "stable", 1)
    named = _challenge(repository, tmp_path, dataset).challenge
    recorded = [(each.champion, each.stable) for each in (first, without, named)]
    assert recorded == [(None, 0), (2, 0), (1, 1)]


def test_drifted_answers_make_a_candidate(repository: Repository, tmp_path: Path) -> None:
    """The champion's manifest says what it answered for its own test images."""
    dataset = _dataset()
    reds = np.tile(np.array([[0.9, 0.06, 0.04]], np.float32), (300, 1))

    def write(folder: Path) -> Description:
        described = write_colours(folder, rotate=0, lie=False)
        (folder / "report").mkdir()
        write_known_images(dataset, folder / "report" / KNOWN_IMAGES_FILE)
        return described.model_copy(update={"reference": reference_of(reds)})

    repository.publish(MODEL, write)
    challenge = _challenge(repository, tmp_path, dataset).challenge
    assert challenge.verdict == "candidate"
    assert "drift of the data: population stability index" in challenge.reasons[0]
