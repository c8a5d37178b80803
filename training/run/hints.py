"""Advice on runs that cannot produce a good network. Pure: recipe and scores in, one line out."""

from training.data import DataReport
from training.evaluation.scores import Scores
from training.recipe import Recipe

# A rule of thumb: from scratch, chest X-rays with 1,208 images of the rarer label train well (pneumonia-cnn),
# photographs of ants and bees with 123 stay at chance.
_ENOUGH_IMAGES = 1_000
_RGB = 3

_TRY_TRANSFER = "try `lenserve-train run transfer`, which starts from pretrained weights"


def too_few_photographs(recipe: Recipe, report: DataReport) -> str | None:
    """Return advice if a network is trained from scratch on a small folder of colour images, else None."""
    counts = report.counts.get("train", {})
    if not counts or not _is_from_scratch(recipe) or recipe.geometry.channels != _RGB:
        return None
    label, count = min(counts.items(), key=lambda item: item[1])
    if count >= _ENOUGH_IMAGES:
        return None
    return (
        f"{recipe.network.name} starts from random weights, and {count:,} training images of {label} are few "
        f"for photographs: {_TRY_TRANSFER}"
    )


def learned_nothing(recipe: Recipe, scores: Scores) -> str | None:
    """Return advice if a network is not clearly better than always predicting one label, else None."""
    recalls = [entry.recall for entry in scores.labels if entry.images]
    constant = 1 / len(recalls)
    balanced = scores.balanced_accuracy
    if (balanced.low if balanced is not None else sum(recalls) / len(recalls)) > constant:
        return None
    advice = (
        _TRY_TRANSFER
        if _is_from_scratch(recipe)
        else "check the learning curves and the labels in the report"
    )
    accuracy = scores.evaluation.accuracy.value
    return f"test accuracy {accuracy:.2%} is not clearly better than always predicting one label: {advice}"


def _is_from_scratch(recipe: Recipe) -> bool:
    return recipe.data.source == "folder" and recipe.network.weights == "random"
