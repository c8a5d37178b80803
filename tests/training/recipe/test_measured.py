"""Measured results of the shipped recipes."""

from datetime import date
from pathlib import Path

import pytest

from serving.bundle import Bundle, Pretrained
from serving.bundle.measures import wilson_interval
from serving.errors import UsageError
from training.few_shot.curve import CurvePoint
from training.recipe import resolve, shipped_names
from training.recipe.measured import MeasuredResult, read_measured, record, shipped_recipe
from training.report.metrics import METRICS_FILE, Metrics
from training.terminal_tables import describe_recipe


def measured(digest: str) -> MeasuredResult:
    """Some result."""
    return MeasuredResult(
        recipe_digest=digest,
        accuracy=wilson_interval(99, 100),
        images=100,
        seconds=1.5,
        machine="a machine",
        framework="torch",
        date=date(2026, 1, 2),
    )


def test_recording_replaces_only_the_result_of_one_recipe(tmp_path: Path) -> None:
    """Other recipes keep their results."""
    path = tmp_path / "measured.json"
    first, second = measured("a" * 64), measured("b" * 64)
    record("one", first, path)
    record("two", first, path)
    record("one", second, path)
    assert read_measured(path) == {"one": second, "two": first}


def test_a_result_keeps_every_score_and_omits_missing_ones(tmp_path: Path) -> None:
    """A result survives the file, with a curve up to all images; missing scores are not written."""
    path = tmp_path / "measured.json"
    point = CurvePoint(per_label=None, draws=1, mean=0.9, low=0.8, high=0.95, worst=0.9, best=0.9)
    plain = measured("a" * 64)
    full = plain.model_copy(
        update={
            "balanced_accuracy": wilson_interval(9, 10),
            "auc": wilson_interval(8, 10),
            "top5": wilson_interval(10, 10),
            "validation": wilson_interval(7, 10),
            "few_shot": (point, point.model_copy(update={"per_label": 5, "draws": 50})),
            "pretrained": Pretrained(network="resnet18", file="weights.pth", sha256="c" * 64),
        }
    )
    record("full", full, path)
    record("plain", plain, path)
    assert read_measured(path) == {"full": full, "plain": plain}
    assert path.read_text().count("auc") == 1


def test_metrics_of_a_run_become_a_measured_result(digits_bundle: Bundle) -> None:
    """Scores, machine, and the digest of the shipped recipe instead of that of the run's settings."""
    written = (digits_bundle.folder / "report" / METRICS_FILE).read_text()
    metrics = Metrics.model_validate_json(written)
    shipped = resolve("lenet5-digits")
    kept = metrics.as_measured(shipped, 1.5)
    assert kept.recipe_digest == shipped.digest() != metrics.recipe_digest
    assert kept.accuracy == digits_bundle.manifest.measured().accuracy
    assert (kept.images, kept.seconds, kept.machine) == (359, 1.5, metrics.machine)
    resumed = metrics.model_copy(update={"earlier_seconds": 60.0})
    assert resumed.as_measured(shipped, 1.5).seconds == 61.5
    assert kept.top5 == metrics.test.top5 is not None
    assert kept.validation == metrics.validation is not None
    assert (kept.auc, kept.few_shot, kept.pretrained) == (None, (), None)


def test_a_recorded_run_may_only_set_the_path_of_the_weights() -> None:
    """Every other setting, and random weights, make it another recipe."""
    assert shipped_recipe("imagenet", []) == resolve("imagenet")
    assert shipped_recipe("imagenet", ["network.weights=/a/file.pth"]) == resolve("imagenet")
    with pytest.raises(UsageError, match=r"except network\.weights=FILE; got network\.name=resnet50$"):
        shipped_recipe("imagenet", ["network.weights=/a/file.pth", "network.name=resnet50"])
    with pytest.raises(UsageError, match=r"got training\.seed=1$"):
        shipped_recipe("lenet5-fake", ["training.seed=1"])
    with pytest.raises(UsageError, match="not for random ones"):
        shipped_recipe("transfer", ["network.weights=random"])
    with pytest.raises(UsageError, match="not for random ones"):
        shipped_recipe("lenet5-fake", ["network.weights=random"])
    with pytest.raises(UsageError, match=r"no \.toml file, .* got own\.toml$"):
        shipped_recipe("own.toml", [])


def test_a_result_of_a_changed_recipe_is_not_current() -> None:
    """The digest of the recipe decides."""
    recipe = resolve("lenet5-digits")
    assert describe_recipe(recipe, measured(recipe.digest()))["measured"]["current"]
    assert not describe_recipe(recipe, measured("0" * 64))["measured"]["current"]
    assert describe_recipe(recipe, None)["measured"] is None


def test_shipped_results_belong_to_shipped_recipes() -> None:
    """measured.json has no unknown recipes."""
    assert set(read_measured()) <= set(shipped_names())
