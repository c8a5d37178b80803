"""Evaluates a published bundle on a test split, through ONNX Runtime."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from serving.bundle import Bundle, Repository
from serving.bundle.looks_like import is_version_name
from serving.bundle.manifest import Strict
from serving.counted import counted
from serving.errors import UsageError
from training import data
from training.atomic_files import require_utf8
from training.data.assignment import SPLITS_FILE, read_assignment, read_tested
from training.data.checks import MAX_NAMES
from training.data.groups import find_groups
from training.data.labels import label_named
from training.data.splits import Indices, Labels, Split
from training.data.storage.disk_images import Images
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
    same_as_manifest: bool = Field(description="same number of images, and of correct ones")
    left_out: int = Field(default=0, description="images that the version was trained on")
    notes: tuple[str, ...] = Field(default=(), description="remarks on these images, one line each")
    seconds: float


@dataclass(frozen=True, slots=True)
class BundleTestSplit:
    """The images that a bundle is evaluated on, with the bundle's label numbers."""

    images: Images  # (N, H, W, C) uint8
    truth: Labels  # (N,) int64, index into the bundle's labels
    groups: Sequence[str] | None  # group of each image, such as a patient; None: images are independent
    left_out: int = 0  # images that the bundle was trained on
    notes: tuple[str, ...] = ()


def evaluate_bundle(
    bundle_dir: Path, source: str | None, data_root: Path | None, cache: Path | None = None
) -> BundleScores:
    """Evaluate a bundle on a test split, or on all images of class directories that it was not trained on.

    Args:
        bundle_dir: <repository>/<model>/<version>.
        source: source of the test split; None: the one in the bundle's recipe.
        data_root: for sources that read files.
        cache: folder of decoded images; None: images are decoded in memory.

    Raises:
        UsageError: `bundle_dir` is not a version's folder, or the bundle does not record its data source.
        BundleError: the bundle was changed or damaged since it was published.
        DataError: the data are missing, or have labels that the bundle does not have.
    """
    began_s = time.perf_counter()
    repository, model, version = locate(bundle_dir)
    bundle = repository.read(model, version)
    recipe = data_recipe(bundle, source)
    test = load_new_images(bundle, recipe, data_root, cache)
    probabilities, _ = run(open_session(bundle.model_file), test.images)  # (N, K)
    scores = score(probabilities, test.truth, bundle.manifest.labels, test.groups)
    published = bundle.manifest.evaluation
    return BundleScores(
        model=bundle.model,
        version=bundle.version,
        path=str(bundle.folder),
        data=recipe.source,
        metrics=scores.headline(),
        labels=scores.labels,
        confusion=scores.confusion,
        same_as_manifest=published is not None
        and (scores.evaluation.images, scores.evaluation.correct) == (published.images, published.correct),
        left_out=test.left_out,
        notes=test.notes,
        seconds=round(time.perf_counter() - began_s, 1),
    )


def locate(bundle_dir: Path) -> tuple[Repository, str, int]:
    """Return the repository, model and version of a bundle's directory.

    Raises:
        UsageError: the directory is not that of a version.
    """
    folder = require_utf8(bundle_dir.resolve(), "the bundle's directory")
    if not is_version_name(folder.name):
        raise UsageError(
            f"{bundle_dir} is not a bundle: name the folder of one version, <repository>/<model>/<version>"
        )
    return Repository(folder.parent.parent), folder.parent.name, int(folder.name)


def load_test_split(
    bundle: Bundle, recipe: DataRecipe, data_root: Path | None, cache: Path | None
) -> BundleTestSplit:
    """Load the test split of the bundle's run in the bundle's geometry, without images that were added since.

    Raises:
        DataError: the data are missing, or have labels that the bundle does not have.
    """
    assignment = _assignment(bundle)
    if not assignment:
        dataset = data.load_unchecked(recipe, bundle.manifest.geometry, data_root, cache)
        return _test_split(bundle, recipe, dataset.test, dataset.labels)
    loaded = data.load_for_evaluation(recipe, bundle.manifest.geometry, data_root, cache)
    tested = _tested(loaded.images, read_tested(bundle.folder / "report" / SPLITS_FILE))
    if not len(tested):
        raise DataError(
            f"none of the {len(loaded.images)} images in {data_root} is in the test split of "
            f"{bundle.model} "
            f"{bundle.version}: name the directory that it was trained on with --data-root"
        )
    return _test_split(bundle, recipe, loaded.images.take(tested), loaded.labels)


def _other_images(bundle: Bundle, images: Split) -> str:
    """A note, if these are some of the images that the version was tested on, or others too."""
    then = {digest for digest, _ in read_tested(bundle.folder / "report" / SPLITS_FILE)}
    now = set(images.digests)
    if then == now or not then & now:
        return ""
    return (
        f"not the images of the version's own test: {len(now - then)} are new, {len(then - now)} of "
        f"{len(then)} are missing"
    )


def _tested(images: Split, listed: Sequence[tuple[bytes, str]]) -> Indices:
    """Indices of the listed images; each as often as it is listed, without copies that were added since."""
    left, names = Counter(digest for digest, _ in listed), {name for _, name in listed}
    found = []
    for index in sorted(range(len(images)), key=lambda index: images.names[index] not in names):
        digest = images.digests[index]
        if left[digest]:
            left[digest] -= 1
            found.append(index)
    return np.array(sorted(found), dtype=np.intp)


def load_new_images(
    bundle: Bundle, recipe: DataRecipe, data_root: Path | None, cache: Path | None
) -> BundleTestSplit:
    """Load a test split, or all images of class directories, without those that the bundle was trained on.

    Raises:
        DataError: the data are missing, or have labels that the bundle does not have.
    """
    loaded = data.load_for_evaluation(recipe, bundle.manifest.geometry, data_root, cache)
    images, notes, left_out = loaded.images, [], 0
    if loaded.undecodable:
        names = ", ".join(list(loaded.undecodable)[:MAX_NAMES])
        notes.append(f"{counted(len(loaded.undecodable), 'file')} skipped that cannot be decoded: {names}")
    assignment = _assignment(bundle)
    if assignment:
        new = [assignment.get(digest, "test") == "test" for digest in images.digests]
        if any(new):
            images, left_out = images.take(np.flatnonzero(new)), len(new) - sum(new)
            if left_out:
                notes.append(
                    f"{counted(left_out, 'image')} left out, which {bundle.model} {bundle.version} was "
                    "trained on"
                )
        elif new:
            notes.append("the version was trained on all of these images, so its scores are too high")
        if any(new) and (other := _other_images(bundle, images)):
            notes.append(other)
    elif not loaded.is_test_split:
        notes.append(
            "the version does not record its training images: if these are among them, scores are too high"
        )
    test = _test_split(bundle, recipe, images, loaded.labels)
    return replace(test, left_out=left_out, notes=tuple(notes))


def _assignment(bundle: Bundle) -> Mapping[bytes, str] | None:
    return read_assignment(bundle.folder / "report" / SPLITS_FILE)


def _test_split(
    bundle: Bundle, recipe: DataRecipe, images: Split, labels: tuple[str, ...]
) -> BundleTestSplit:
    return BundleTestSplit(
        images=images.images,
        truth=_bundle_label_indices(images, labels, bundle.manifest.labels),
        groups=_groups(images, recipe),
    )


def _groups(images: Split, recipe: DataRecipe) -> Sequence[str] | None:
    """None also if the pattern matches no name: new images may be named otherwise."""
    names, pattern = images.names_in_split, recipe.group_pattern
    if pattern is None or not any(re.search(pattern, name) for name in names):
        return None
    return find_groups(names, pattern)


def data_recipe(bundle: Bundle, source: str | None) -> DataRecipe:
    """Return the data section of the bundle's recipe, so that the test split was not seen in training.

    Args:
        bundle: a bundle with its report.
        source: overrides the recipe's source, if not None.

    Raises:
        UsageError: the bundle does not record its data, and no source is given.
    """
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
    """Return the true labels as indices into the bundle's labels: (N,) int64."""
    own = [label_named(label) for label in bundle_labels]
    used = [labels[index] for index in np.unique(test.labels)]
    unknown = [label for label in used if label_named(label) not in own]
    if unknown:
        raise DataError(
            f"the data have {counted(len(unknown), 'label')} that the bundle does not have: "
            f"{', '.join(unknown)}; it "
            f"has {', '.join(bundle_labels[:MAX_NAMES])}"
        )
    names = [label_named(label) for label in labels]
    index = np.array([own.index(name) if name in own else -1 for name in names], dtype=np.int64)
    return index[test.labels]
