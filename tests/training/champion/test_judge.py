"""Verdicts: what is proven worse is refused, what is not proven either way is a candidate."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tests.benchmarks.gate import failures, simulate
from training.champion.judge import Answers, Compared, judge
from training.data.relabelled import Relabelled
from training.recipe import ChampionRecipe

Correct = npt.NDArray[np.bool_]
LABELS = ("ant", "bee", "cat", "dog")


def _compared(
    challenger: Correct,
    champion: Correct,
    *,
    groups: Sequence[str] | None = None,
    may_know_images: str = "",
    relabelled: Relabelled | None = None,
) -> Compared:
    truth = np.arange(len(champion), dtype=np.int64) % len(LABELS)
    return Compared(
        Answers(challenger, 0.01),
        Answers(champion, 0.01),
        truth,
        LABELS,
        groups=groups,
        may_know_images=may_know_images,
        relabelled=relabelled,
    )


def _right(images: int = 1000, *, wrong: slice = slice(0)) -> Correct:
    correct = np.ones(images, bool)
    correct[wrong] = False
    return correct


def _failed(compared: Compared) -> tuple[str, dict[str, str]]:
    verdict, checks = judge(compared, ChampionRecipe())
    return verdict, {check.name: check.detail for check in checks if not check.passed}


def test_equal_answers_on_enough_images_are_promoted() -> None:
    """178 of them prove that at most 1.5 points are lost."""
    assert _failed(_compared(_right(178), _right(178))) == ("promote", {})
    verdict, failed = _failed(_compared(_right(170), _right(170)))
    assert verdict == "candidate"
    assert failed["accuracy"].endswith(
        "too few images to tell; 178 would do if both answered alike. Add test images, set a larger "
        "champion.max_accuracy_loss, or promote it by hand"
    )


def test_of_enough_images_that_differ_no_number_is_named() -> None:
    """How many are needed depends on how often the two differ."""
    challenger, champion = _right(200, wrong=slice(0, 10)), _right(200, wrong=slice(10, 20))
    verdict, failed = _failed(_compared(challenger, champion))
    assert verdict == "candidate"
    assert "too few images to tell. Add test images" in failed["accuracy"]


def test_a_proven_loss_is_refused_with_its_numbers() -> None:
    """The detail has images, counts, interval, margin and p-value."""
    verdict, failed = _failed(_compared(_right(wrong=slice(0, 40)), _right(wrong=slice(0, 10))))
    assert verdict == "refuse"
    assert failed["accuracy"].startswith(
        "-3.00 points on 1,000 images: 0 gained, 30 lost; with 95 % confidence"
    )
    assert (
        "allowed -1.50 (champion.max_accuracy_loss); it is worse (McNemar's exact test, p = 9.3e-10)"
        in (failed["accuracy"])
    )


def test_one_image_is_singular() -> None:
    """Too few to tell, also in the grammar."""
    verdict, failed = _failed(_compared(_right(1), _right(1)))
    assert verdict == "candidate"
    assert failed["accuracy"].startswith("+0.00 points on 1 image: 0 gained, 0 lost;")


def test_a_proven_loss_within_the_margin_is_promoted() -> None:
    """Of 50,000 images, a loss of 0.2 points is certain, and allowed."""
    champion = _right(50_000)
    assert _failed(_compared(_right(50_000, wrong=slice(0, 100)), champion)) == ("promote", {})


def test_a_label_that_was_lost_is_refused_by_name() -> None:
    """Even where other labels make up for it."""
    challenger, champion = _right(), _right()
    challenger[2::4][:60] = False  # cat
    champion[0::4][:70] = False  # ant
    verdict, failed = _failed(_compared(challenger, champion))
    assert verdict == "refuse"
    assert failed == {
        "recall of every label": "'cat' 0.76, champion 1.00; maximum loss 0.05 (champion.max_recall_loss)"
    }


def test_a_label_with_few_images_is_not_refused_by_chance() -> None:
    """Three of ten images more are no proof, with four labels tested."""
    challenger, champion = _right(40), _right(40)
    challenger[2::4][:3] = False
    verdict, failed = _failed(_compared(challenger, champion))
    assert (verdict, set(failed)) == ("candidate", {"accuracy"})


EQUAL = _compared(_right(), _right())


@pytest.mark.parametrize(
    ("compared", "name", "detail"),
    [
        (
            replace(EQUAL, challenger=Answers(_right(), 0.08)),
            "calibration error",
            "0.080, champion 0.010, max",
        ),
        (replace(EQUAL, latency_ratio=2.5), "latency of one image", "2.50 of the champion's, maximum 2"),
        (replace(EQUAL, size_ratio=5.0), "size of the file", "5.00 of the champion's, maximum 4"),
        (replace(EQUAL, drift=0.5, drift_of="x"), "drift of the data", "index 0.500 of x, maximum 0.25"),
    ],
    ids=["calibration", "latency", "size", "drift"],
)
def test_what_people_should_look_at_makes_a_candidate(compared: Compared, name: str, detail: str) -> None:
    """The detail has the value, the limit and its setting."""
    verdict, failed = _failed(compared)
    assert (verdict, set(failed)) == ("candidate", {name})
    assert detail in failed[name]
    assert "(champion.max_" in failed[name]


def test_a_champion_that_may_know_the_images_refuses_nobody() -> None:
    """It looks better than it is. What beats it all the same is still a candidate only."""
    worse = _compared(_right(wrong=slice(0, 40)), _right(), may_know_images="it does not say")
    equal = _compared(_right(), _right(), may_know_images="it does not say")
    assert [_failed(each)[0] for each in (worse, equal)] == ["candidate", "candidate"]


def test_images_of_few_patients_prove_less() -> None:
    """What 400 independent images prove, 400 of ten patients do not."""
    challenger, champion = _right(400, wrong=slice(0, 40)), _right(400)
    assert _failed(_compared(challenger, champion))[0] == "refuse"
    patients = [f"patient-{number // 40}" for number in range(400)]
    limits = ChampionRecipe(max_recall_loss=1)
    assert judge(_compared(challenger, champion, groups=patients), limits)[0] == "candidate"


def test_verdicts_on_simulated_pairs_are_as_rarely_wrong_as_stated() -> None:
    """The small form of `make bench-refresh`: 600 pairs of each kind instead of 2,000."""
    outcomes = [simulate(difference, 0.08, pairs=600, images=1000) for difference in (-0.02, 0.0, 0.02)]
    assert list(failures(outcomes)) == []
    assert outcomes[2].promote > 0.95


@pytest.mark.parametrize(("changed", "verdict"), [(12, "promote"), (13, "candidate"), (250, "candidate")])
def test_many_changed_labels_make_a_candidate(changed: int, verdict: str) -> None:
    """Then it cannot be known which of the two is right. Corrections of up to 5 % of each label can pass."""
    relabelled = Relabelled(dict.fromkeys(LABELS, 250), {("ant", "bee"): changed})
    assert _failed(_compared(_right(), _right(), relabelled=relabelled)) == (
        verdict,
        {}
        if verdict == "promote"
        else {
            "labels of known images": f"{changed} of 1,000 known images have another label: 'ant' is now "
            f"'bee' ({changed}); maximum 5 % of any label (champion.max_relabelled). If the new labels are "
            "right, promote it by hand; otherwise correct them"
        },
    )


def test_changed_labels_do_not_lift_a_refusal() -> None:
    """A version that is proven worse on the new labels helps nobody."""
    relabelled = Relabelled(dict.fromkeys(LABELS, 250), {("ant", "bee"): 250})
    worse = _compared(_right(wrong=slice(0, 100)), _right(), relabelled=relabelled)
    assert _failed(worse)[0] == "refuse"


def test_while_labels_have_changed_no_images_are_asked_for() -> None:
    """More images with such labels would prove nothing."""
    relabelled = Relabelled(dict.fromkeys(LABELS, 25), {("ant", "bee"): 13})
    verdict, failed = _failed(_compared(_right(100), _right(100), relabelled=relabelled))
    assert verdict == "candidate"
    assert failed["accuracy"].endswith(
        "allowed -1.50 (champion.max_accuracy_loss): unclear while the labels of images have changed"
    )


def test_a_champion_far_below_its_record_makes_a_candidate_that_says_what_to_do() -> None:
    """A challenger that learnt wrong labels is right on every test image where the champion is wrong."""
    wrong = replace(_compared(_right(), _right(wrong=slice(0, 996))), recorded_accuracy=0.9965)
    verdict, failed = _failed(wrong)
    assert verdict == "candidate"
    assert failed == {
        "the champion on these images": "accuracy 0.4 %, on its own test images 99.7 %; maximum loss 25 "
        "points, twice that for one label (champion.max_champion_loss). These images are labelled otherwise "
        "than the champion's, or of another kind: look at the report's mistakes. If the labels are right, "
        "promote it by hand"
    }


@pytest.mark.parametrize(("wrong", "verdict"), [(250, "promote"), (251, "candidate")])
def test_a_champion_may_lose_what_the_recipe_allows(wrong: int, verdict: str) -> None:
    """25 points by default: images of new places are harder, which is no reason to look at labels."""
    compared = _compared(_right(), _right(wrong=slice(0, wrong)))
    assert _failed(replace(compared, recorded_accuracy=1.0))[0] == verdict


def test_labels_that_the_champion_lost_are_named() -> None:
    """Two exchanged labels of four, in data that is right otherwise; with few images of a label, chance."""
    champion = _right()
    champion[0::4][:200] = champion[1::4][:120] = champion[2::4][:120] = False
    recalls = {"ant": 0.95, "bee": 0.98, "cat": 0.97}  # of `dog` it had few test images
    compared = replace(_compared(_right(), champion), recorded_accuracy=0.6, recorded_recalls=recalls)
    verdict, failed = _failed(compared)
    assert (verdict, set(failed)) == ("candidate", {"the champion on these images"})
    detail = failed["the champion on these images"]
    assert "; recall of 'ant' 0.20, before 0.95; maximum loss 25 points" in detail
    few = _compared(_right(36), _right(36, wrong=slice(0, 36)))  # nine of each label
    few = replace(few, recorded_accuracy=0.0, recorded_recalls=recalls)
    assert set(_failed(few)[1]) == set()


@pytest.mark.parametrize(("seen", "verdict"), [(0.05, "promote"), (0.06, "candidate")])
def test_many_test_images_like_training_images_make_a_candidate(seen: float, verdict: str) -> None:
    """The challenger knows them, such as copies that were augmented before; ordinary data have a few."""
    advice = ". Keep the copies of an image in one split with data.group_pattern, or set "
    found, checks = judge(replace(EQUAL, seen=seen), ChampionRecipe())
    (detail,) = [check.detail for check in checks if check.name == "test images new to this version"]
    assert found == verdict
    assert detail.startswith(
        f"{100 * seen:.1f} % look like training or validation images of the new version, maximum 5 %"
    )
    assert (advice in detail) == (verdict == "candidate")
