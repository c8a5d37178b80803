"""Verifies a published bundle and evaluates it on a test split, through ONNX Runtime."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from serving.bundle import Bundle, Repository
from serving.bundle.manifest import Strict
from serving.errors import UsageError
from training import data
from training.data.groups import find_groups
from training.data.splits import Labels, Split
from training.errors import DataError
from training.evaluation.evaluate import score
from training.evaluation.onnx_session import open_session, run
from training.evaluation.scores import LabelScore
from training.recipe import DataRecipe
from training.report.metrics import METRICS_FILE


class BundleScores(Strict):
    """The scores of a bundle on a test split."""

    model: str
    version: int
    path: str
    data: str = Field(description="the source")
    metrics: Mapping[str, int | float]
    labels: tuple[LabelScore, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(description="[true label][predicted label] -> images")
    same_as_manifest: bool = Field(description="the same numbers of images and of correct ones")
    seconds: float


def evaluate_bundle(
    bundle_dir: Path, source: str | None, data_root: Path | None, cache: Path | None = None
) -> BundleScores:
    """Evaluate a bundle.

    Args:
        bundle_dir: <repository>/<model>/<version>.
        source: whose test split is used; None: that of the bundle's recipe.
        data_root: for sources that read files.
        cache: folder of decoded images; None: they are decoded in memory.

    Raises:
        UsageError: `bundle_dir` is not a version's folder, or the bundle does not record its data source.
        BundleError: the bundle was changed or damaged since it was published.
        DataError: the data are missing, or have labels that the bundle does not have.
    """
    began_s = time.perf_counter()
    bundle = _read_bundle(bundle_dir)
    recipe = _data_recipe(bundle, source)
    dataset = data.load_unchecked(recipe, bundle.manifest.geometry, data_root, cache)
    truth = _bundle_label_indices(dataset.test, dataset.labels, bundle.manifest.labels)
    probabilities, _ = run(open_session(bundle.model_file), dataset.test.images)  # (N, K)
    groups = None if recipe.group_pattern is None else find_groups(dataset.test.names, recipe.group_pattern)
    scores = score(probabilities, truth, bundle.manifest.labels, groups)
    published = bundle.manifest.evaluation
    return BundleScores(
        model=bundle.model,
        version=bundle.version,
        path=str(bundle.folder),
        data=recipe.source,
        metrics=scores.headline(),
        labels=scores.labels,
        confusion=scores.confusion,
        same_as_manifest=(scores.evaluation.images, scores.evaluation.correct)
        == (published.images, published.correct),
        seconds=round(time.perf_counter() - began_s, 1),
    )


def _read_bundle(bundle_dir: Path) -> Bundle:
    folder = bundle_dir.resolve()
    if not folder.name.isdigit():
        raise UsageError(
            f"{bundle_dir} is not a bundle: name the folder of one version, <repository>/<model>/<version>"
        )
    return Repository(folder.parent.parent).read(folder.parent.name, int(folder.name))


def _data_recipe(bundle: Bundle, source: str | None) -> DataRecipe:
    """The data section of the bundle's recipe, so that the test split is the one that training never saw."""
    written = bundle.folder / "report" / METRICS_FILE
    try:
        settings = json.loads(written.read_text(encoding="utf-8"))["recipe"]
        own = {key.removeprefix("data."): value for key, value in settings.items() if key.startswith("data.")}
        recipe = DataRecipe.model_validate(own)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if source is None:
            raise UsageError(
                f"{written} does not record the data that the bundle was tested on: name a source with --data"
            ) from error
        return DataRecipe.model_validate({"source": source})
    return recipe if source in (None, recipe.source) else DataRecipe.model_validate({"source": source})


def _bundle_label_indices(test: Split, labels: tuple[str, ...], bundle_labels: tuple[str, ...]) -> Labels:
    """The true labels as indices into the bundle's labels: (N,) int64."""
    unknown = sorted(set(labels) - set(bundle_labels))
    if unknown:
        raise DataError(
            f"the data have {len(unknown)} labels that the bundle does not have: {', '.join(unknown)}"
        )
    index = np.array([bundle_labels.index(label) for label in labels], dtype=np.int64)
    return index[test.labels]
