"""The top of the page: published or refused, the headline figures, and three sentences."""

from collections.abc import Iterator

from serving.bundle import Estimate
from training.recipe.results import CHOSE_EPOCH, TUNED_ON_TEST
from training.report.blocks import Block, Prose, Tile, Tiles, Verdict
from training.report.evidence import Evidence
from training.report.metrics import Metrics
from training.report.sentences import three_sentences


def verdict(evidence: Evidence) -> Verdict:
    """What became of the run."""
    metrics = evidence.metrics
    failed = tuple((check.name, check.detail) for check in metrics.checks if not check.passed)
    if failed:
        count = f"{len(failed)} of {len(metrics.checks)} checks failed"
        return Verdict(
            published=False,
            word="Refused",
            text=f"{count}. Nothing was published: servers keep the version that they have.",
            failed=failed,
        )
    passed, challenge = f"All {len(metrics.checks)} checks passed.", metrics.champion
    against = () if challenge is None else tuple((c.name, c.detail) for c in challenge.checks if not c.passed)
    if challenge is not None and challenge.decision == "refuse":
        return Verdict(
            published=False,
            word="Refused",
            text=f"{passed} It is worse than version {challenge.champion}, which is served. "
            "Nothing was published.",
            failed=against,
        )
    if challenge is not None and challenge.decision == "candidate":
        return Verdict(
            published=True,
            word="Candidate",
            text=f"{passed} It is published{_number(evidence)}, but not served by default: version "
            f"{challenge.champion} is. This speaks against it:",
            failed=against,
        )
    text = f"{passed}{_version(evidence)}"
    if challenge is not None and challenge.forced:
        text += " It was promoted by --force, although this speaks against it:"
    return Verdict(published=True, word="Published", text=text, failed=against)


def _number(evidence: Evidence) -> str:
    return "" if evidence.version is None else f" as version {evidence.version}"


def _version(evidence: Evidence) -> str:
    replaced = evidence.replaced
    before = (
        "the first one"
        if replaced is None
        else f"which replaces version {replaced.version} (accuracy {replaced.accuracy:.2%} on its test split)"
    )
    if evidence.version is None:
        return ""
    return f" This is version {evidence.version} of {evidence.metrics.model}, {before}."


def summary_blocks(evidence: Evidence) -> tuple[Block, ...]:
    """Headline figures and the three sentences."""
    metrics = evidence.metrics
    return (
        Tiles(tuple(_tiles(metrics)), tuple(_notes(metrics))),
        Prose(three_sentences(metrics)),
    )


def _tiles(metrics: Metrics) -> Iterator[Tile]:
    test, tuned = metrics.test, TUNED_ON_TEST if metrics.tuned_on_test else ""
    evaluation = test.evaluation
    yield _estimate("test accuracy", evaluation.accuracy, ".2%", tuned)
    yield Tile("test images right", f"{evaluation.correct:,}", f"of {evaluation.images:,}", tuned)
    for name, estimate, form in (
        ("AUC", test.auc, ".4f"),
        ("balanced accuracy", test.balanced_accuracy, ".2%"),
        ("top-5 accuracy", test.top5, ".2%"),
    ):
        if estimate is not None:
            yield _estimate(name, estimate, form, tuned)
    if metrics.validation is not None:
        chose = CHOSE_EPOCH if metrics.validation_chose_epoch else ""
        yield _estimate("validation accuracy", metrics.validation, ".2%", chose)
    debiased = test.ece_debiased
    yield Tile(
        "test calibration error",
        f"{evaluation.ece:.4f}",
        "" if debiased is None else f"{debiased:.4f} beyond chance",
        tuned,
    )


def _estimate(name: str, estimate: Estimate, form: str, mark: str) -> Tile:
    interval = f"95 % interval {estimate.low:{form}} to {estimate.high:{form}}"
    return Tile(name, f"{estimate.value:{form}}", interval, mark)


def _notes(metrics: Metrics) -> Iterator[str]:
    if metrics.tuned_on_test:
        yield f"{TUNED_ON_TEST} Optimistic, because test images chose {metrics.tuned_on_test}"
    if metrics.validation is not None and metrics.validation_chose_epoch:
        yield f"{CHOSE_EPOCH} Optimistic, because validation images chose the epoch"
