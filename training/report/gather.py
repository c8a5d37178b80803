"""Gathers the evidence of a report: of a run, or of a published bundle and what is left of its data."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from serving.bundle import Bundle, Repository
from serving.counted import counted
from serving.errors import UsageError
from serving.validation_errors import describe
from training import data
from training.champion.compare import Outcome
from training.data import Dataset
from training.data.assignment import SPLITS_FILE, read_assignment
from training.data.augmentation.examples import augmented_examples
from training.data.splits import Split
from training.errors import DataError, RecipeError
from training.evaluation.evaluate_bundle import data_recipe, locate
from training.evaluation.onnx_session import open_session, run
from training.evaluation.proof import Proof
from training.learning.history import EpochRecord
from training.networks import Network, build
from training.networks.backbones import RANDOM, build_classifier
from training.networks.layer_features import build_extractor
from training.recipe import DataRecipe, Recipe, recipe_from_settings
from training.report.evidence import Evidence
from training.report.metrics import METRICS_FILE, Metrics
from training.report.predictions import PREDICTIONS_FILE, Predictions, predict_splits, read_predictions
from training.report.replaced import find_replaced, replaced_by_run
from training.report.report import HISTORY_FILE

_WITHOUT_FILES = ("digits", "fake")  # sources that need no --data-root
_REPORT = "report"


def evidence_of_run(
    recipe: Recipe,
    metrics: Metrics,
    *,
    history: Sequence[EpochRecord],
    dataset: Dataset,
    proof: Proof,
    model_file: Path,
    repository: Repository,
    outcome: Outcome | None = None,
) -> Evidence:
    """Gather what a run has when it is proven, before anything is published.

    Args:
        recipe: of the run.
        metrics: all that was measured.
        history: one record per epoch.
        dataset: all splits.
        proof: of the exported file.
        model_file: the exported file.
        repository: where the version is going to be published.
        outcome: of the comparison with the champion; None: a check failed before it.
    """
    predictions = predict_splits(dataset, proof.probabilities, model_file, recipe.data.group_pattern)
    passed = all(check.passed for check in metrics.checks) and not _is_refused(metrics)
    # The next number; another publisher of the same model at the same moment could take it.
    version = max(repository.versions(metrics.model), default=0) + 1 if passed else None
    return Evidence(
        metrics=metrics,
        labels=dataset.labels,
        geometry=recipe.geometry,
        history=tuple(history),
        predictions=predictions,
        dataset=dataset,
        embedding=proof.embedding,
        examples=augmented_examples(recipe, dataset.train) if history else None,
        model_file=model_file,
        version=version,
        replaced=replaced_by_run(outcome)
        or find_replaced(repository, metrics.model, None, predictions["test"], dataset, recipe.geometry),
        machine=metrics.machine,
    )


def _is_refused(metrics: Metrics) -> bool:
    return metrics.champion is not None and metrics.champion.decision == "refuse"


def evidence_of_bundle(
    bundle_dir: Path, data_root: Path | None, cache: Path | None = None, *, machine: str = ""
) -> tuple[Evidence, Network | None]:
    """Gather what a bundle has, and with its data everything that a run has.

    Args:
        bundle_dir: <repository>/<model>/<version>.
        data_root: directory of the data that it was tested on; None: only sources without files are read.
        cache: directory of decoded images; None: they are decoded in memory.
        machine: where the latency is measured.

    Returns: the evidence, and the torch network without its weights, for its picture.

    Raises:
        UsageError: `bundle_dir` is not a version's directory, or the version has no metrics.
        BundleError: the bundle was changed or damaged since it was published.
        DataError: the data are missing, or give other predictions than the bundle states.
    """
    repository, model, number = locate(bundle_dir)
    bundle = repository.read(model, number)
    metrics, history = _read_report(bundle)
    recipe = _recipe(metrics, bundle)
    evidence = Evidence(
        metrics=metrics,
        labels=bundle.manifest.labels,
        geometry=bundle.manifest.geometry,
        history=history,
        predictions=_kept_predictions(bundle),
        model_file=bundle.model_file,
        version=number,
        machine=machine,
    )
    source = data_recipe(bundle, metrics.recipe.get("data.source"))
    if data_root is not None or source.source in _WITHOUT_FILES:
        evidence = _with_data(evidence, bundle, source, recipe, data_root, cache)
    replaced = find_replaced(
        repository,
        model,
        number,
        evidence.test,
        evidence.dataset,
        bundle.manifest.geometry,
        None if metrics.champion is None else metrics.champion.champion,
    )
    return replace(evidence, replaced=replaced), _network(recipe, len(bundle.manifest.labels))


def _read_report(bundle: Bundle) -> tuple[Metrics, tuple[EpochRecord, ...]]:
    path = bundle.folder / _REPORT / METRICS_FILE
    try:
        metrics = Metrics.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; a report is made from it") from error
    except ValidationError as error:
        raise UsageError(f"{path} is of another version of Lenserve: {describe(error, Metrics)}") from error
    try:
        records = json.loads((bundle.folder / _REPORT / HISTORY_FILE).read_text(encoding="utf-8"))
        return metrics, tuple(EpochRecord(**record) for record in records)
    except (OSError, ValueError, TypeError):
        return metrics, ()


def _recipe(metrics: Metrics, bundle: Bundle) -> Recipe | None:
    try:
        return recipe_from_settings(metrics.recipe, str(bundle.folder))
    except RecipeError:  # a setting that this version does not know
        return None


def _network(recipe: Recipe | None, classes: int) -> Network | None:
    if recipe is None:
        return None
    shape_alone = recipe.network.model_copy(update={"weights": RANDOM})
    try:
        if recipe.method == "as-is":
            return build_classifier(shape_alone, recipe.geometry, weights_follow=True)
        if recipe.method == "few-shot":
            settings = (shape_alone, recipe.head, recipe.geometry, classes)
            return build_extractor(*settings, weights_follow=True).network
        return build(shape_alone, recipe.geometry, classes)
    except RecipeError:
        return None


def _kept_predictions(bundle: Bundle) -> dict[str, Predictions]:
    path = bundle.folder / _REPORT / PREDICTIONS_FILE
    return read_predictions(path, bundle.manifest.labels) if path.exists() else {}


def _with_data(  # noqa: PLR0917 - a bundle, and where its data are
    evidence: Evidence,
    bundle: Bundle,
    source: DataRecipe,
    recipe: Recipe | None,
    data_root: Path | None,
    cache: Path | None,
) -> Evidence:
    loaded = data.load_unchecked(source, bundle.manifest.geometry, data_root, cache)
    dataset = _of_run(_with_labels_of(bundle, loaded), bundle)
    if not len(dataset.test):
        raise DataError(f"{data_root} has no image of the test split of {bundle.model} {bundle.version}")
    probabilities, embedding = run(open_session(bundle.model_file), dataset.test.images)
    predictions = predict_splits(dataset, probabilities, bundle.model_file, source.group_pattern)
    stated, test = bundle.manifest.measured(), predictions["test"]
    found = len(test), int(test.correct.sum())
    if found != (stated.images, stated.correct):
        raise DataError(
            f"these are not the test images of {bundle.model} {bundle.version}: {found[1]:,} of {found[0]:,} "
            f"are right, its manifest states {stated.correct:,} of {stated.images:,}; name the directory "
            "that it was trained on with --data-root, or leave --data-root out"
        )
    trained = recipe is not None and evidence.history and len(dataset.train)
    return replace(
        evidence,
        predictions=predictions,
        dataset=dataset,
        embedding=embedding,
        examples=augmented_examples(recipe, dataset.train) if recipe is not None and trained else None,
    )


def _with_labels_of(bundle: Bundle, dataset: Dataset) -> Dataset:
    """The same images with the bundle's label numbers."""
    labels = bundle.manifest.labels
    unknown = sorted(set(dataset.labels) - set(labels))
    if unknown:
        raise DataError(
            f"the data have {counted(len(unknown), 'label')} that the bundle does not have: "
            f"{', '.join(unknown)}"
        )
    index = np.array([labels.index(label) for label in dataset.labels], np.int64)

    def numbered(split: Split) -> Split:
        return replace(split, labels=index[split.labels] if len(split) else split.labels)

    return replace(
        dataset,
        labels=labels,
        train=numbered(dataset.train),
        validation=numbered(dataset.validation),
        test=numbered(dataset.test),
    )


def _of_run(dataset: Dataset, bundle: Bundle) -> Dataset:
    """Without images that were added to the directory since the run, or that its checks removed."""
    assignment = read_assignment(bundle.folder / _REPORT / SPLITS_FILE)
    if not assignment:
        return dataset

    def kept(name: str, split: Split) -> Split:
        if not split.digests:
            return split
        return split.take(np.flatnonzero([assignment.get(digest) == name for digest in split.digests]))

    return replace(
        dataset,
        train=kept("train", dataset.train),
        validation=kept("validation", dataset.validation),
        test=kept("test", dataset.test),
    )
