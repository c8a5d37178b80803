"""Three plain sentences about a run: what it is good at, what it confuses, what was wrong with the data."""

from training.data.checks import DataReport
from training.evaluation.scores import LabelScore, Scores
from training.report.metrics import Metrics

_BEST = 3  # labels that are named
_CONFUSIONS = 3
_FEWEST_IMAGES = 10  # of a label whose recall is named


def three_sentences(metrics: Metrics) -> tuple[str, str, str]:
    """Generate the sentences from the numbers."""
    return what_it_is_good_at(metrics.test), what_it_confuses(metrics.test), what_was_wrong(metrics.data)


def what_it_is_good_at(scores: Scores) -> str:
    """The accuracy, and the labels with the highest recall."""
    accuracy = scores.evaluation.accuracy
    beginning = (
        f"It is right on {accuracy.value:.1%} of {scores.evaluation.images:,} test images "
        f"({accuracy.low:.1%} to {accuracy.high:.1%})"
    )
    judged = [entry for entry in scores.labels if entry.images >= _FEWEST_IMAGES]
    if not judged:
        return f"{beginning}; no label has {_FEWEST_IMAGES} test images, so none can be called its best."
    judged.sort(key=lambda entry: (-entry.recall, -entry.images))
    if judged[0].recall == judged[-1].recall:
        return f"{beginning}, and equally good at every label ({judged[0].recall:.1%})."
    if len(judged) == 2:  # noqa: PLR2004
        return f"{beginning}, and better at {_with_recall(judged[0])} than at {_with_recall(judged[1])}."
    best = judged[: min(_BEST, len(judged) - 1)]
    return f"{beginning}, and best at {_joined([_with_recall(entry) for entry in best])}."


def what_it_confuses(scores: Scores) -> str:
    """The most frequent kinds of error."""
    labels = [entry.label for entry in scores.labels]
    errors = sorted(
        (-count, row, column)
        for row, counts in enumerate(scores.confusion)
        for column, count in enumerate(counts)
        if count and row != column
    )
    if not errors:
        return "It confuses nothing: no test image has a wrong prediction."
    if -errors[0][0] == 1 and len(errors) > _CONFUSIONS:
        return f"It confuses no two labels more than once: its {len(errors):,} errors are all different."
    named = [
        f"{labels[column]} for {labels[row]} ({-count:,} of {sum(scores.confusion[row]):,})"
        for count, row, column in errors[:_CONFUSIONS]
    ]
    return f"Its most frequent errors are to predict {_joined(named)}."


def what_was_wrong(data: DataReport) -> str:
    """What the checks of the data found."""
    removed = sum(map(len, data.removed.values()))
    repeated = sum(data.repeated.values())
    leaks = sum(map(len, data.near_leaks.values()))
    findings = [
        (len(data.undecodable), "unreadable file was skipped", "unreadable files were skipped"),
        (removed, "image was removed (a later split has it)", "images were removed (a later split has them)"),
        (len(data.conflicts), "pair of equal images has two labels", "pairs of equal images have two labels"),
        (repeated, "image is a duplicate within its split", "images are duplicates within their split"),
        (leaks, "image looks like one of a later split", "images look like one of a later split"),
    ]  # fmt: skip
    found = [f"{count:,} {one if count == 1 else many}" for count, one, many in findings if count]
    if not found and data.near_duplicates:
        count = len(data.near_duplicates)
        found = [f"{count:,} {'pair of images looks' if count == 1 else 'pairs of images look'} the same"]
    if not found:
        return "The checks found nothing wrong with the data."
    return f"In the data, {_joined(found)}."


def _with_recall(entry: LabelScore) -> str:
    return f"{entry.label} ({entry.recall:.1%} of {entry.images:,})"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
