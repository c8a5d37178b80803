"""Loads a data set: read from its source, split, and checked. Images are resized by the server's own code."""

from pathlib import Path

from serving.bundle import Geometry
from serving.errors import UsageError
from training.data.checks import DataReport, check
from training.data.sources import cifar10, digits, fake, folder, imagenet, mnist, npz
from training.data.sources.folder_layout import readable
from training.data.splits import Dataset, EvaluationData, SourceData, SplitOptions, make_splits
from training.data.storage.decoded_images import DecodeOptions, ProgressCallback, no_progress
from training.devices.memory import image_limit_bytes
from training.recipe import DataRecipe

_WITHOUT_ROOT = ("digits", "fake")  # sources that read no files
WITHOUT_FILES = (*_WITHOUT_ROOT, "fashion-mnist")  # sources that need no --data-root


def require_root_named(recipe: DataRecipe, data_root: Path | None) -> None:
    """Check that the data's directory is named, for sources that read files.

    Raises:
        UsageError: it is not.
    """
    if data_root is None and recipe.source not in WITHOUT_FILES:
        raise UsageError(f"data source {recipe.source} needs --data-root, the directory with its files")


def refuse_unread_root(recipe: DataRecipe, data_root: Path | None) -> None:
    """Check that the data's directory is not named for a source that reads no files: it would not be used.

    Raises:
        UsageError: it is.
    """
    if data_root is not None and recipe.source in _WITHOUT_ROOT:
        raise UsageError(
            f"data source {recipe.source} does not read --data-root {readable(data_root)}: "
            "leave it out, or add --set data.source=folder to train on folders of images"
        )


def require_root(recipe: DataRecipe, data_root: Path | None) -> None:
    """Check that the data's directory is named and exists, for sources that read files.

    Raises:
        UsageError: it does not.
    """
    require_root_named(recipe, data_root)
    is_read = recipe.source not in _WITHOUT_ROOT and not recipe.download  # a download creates it
    if data_root is not None and is_read and not data_root.exists():
        raise UsageError(f"--data-root {readable(data_root)} is missing: name the directory with the files")


def load(
    recipe: DataRecipe,
    geometry: Geometry,
    data_root: Path | None,
    cache: Path | None = None,
    *,
    processes: int = 1,
    on_progress: ProgressCallback = no_progress,
) -> tuple[Dataset, DataReport]:
    """Load a data set, split it and check it.

    Args:
        recipe: the source and the fractions of the splits.
        geometry: the size and channels of the loaded images.
        data_root: directory of the files; may be None for sources that need no files.
        cache: directory of decoded images and found duplicates, keyed by content; None: no cache.
        processes: number of processes that share this machine's memory.
        on_progress: called with the numbers of decoded and of all files; may raise to end loading.

    Raises:
        UsageError: the data root is missing.
        DataError: the data are damaged, or too few.
    """
    require_root(recipe, data_root)
    decode = DecodeOptions(cache, image_limit_bytes(recipe.memory_limit_gib, processes), on_progress)
    source = _load_source(recipe, geometry, data_root, decode)
    return check(_split(source, recipe), source, recipe, cache)


def load_unchecked(
    recipe: DataRecipe, geometry: Geometry, data_root: Path | None, cache: Path | None = None
) -> Dataset:
    """Load without the checks. The test split is the same as `load` returns, since checks never change it."""
    require_root(recipe, data_root)
    decode = DecodeOptions(cache, image_limit_bytes(recipe.memory_limit_gib))
    return _split(_load_source(recipe, geometry, data_root, decode), recipe)


def load_for_evaluation(
    recipe: DataRecipe, geometry: Geometry, data_root: Path | None, cache: Path | None = None
) -> EvaluationData:
    """Load what a published version is evaluated on: the test split, or a whole directory of classes."""
    require_root(recipe, data_root)
    if recipe.source != "folder" or data_root is None:
        dataset = load_unchecked(recipe, geometry, data_root, cache)
        return EvaluationData(dataset.labels, dataset.test)
    decode = DecodeOptions(cache, image_limit_bytes(recipe.memory_limit_gib))
    return folder.load_for_evaluation(geometry, data_root, decode)


def _split(source: SourceData, recipe: DataRecipe) -> Dataset:
    options = SplitOptions(
        test_fraction=recipe.test_fraction,
        validation_fraction=recipe.validation_fraction,
        seed=recipe.split_seed,
        group_pattern=recipe.group_pattern,
        min_validation=recipe.min_validation_images_per_class,
    )
    return make_splits(source, options)


def _load_source(
    recipe: DataRecipe, geometry: Geometry, data_root: Path | None, decode: DecodeOptions
) -> SourceData:
    if recipe.source == "digits":
        return digits.load(geometry)
    if recipe.source == "fake":
        return fake.load(geometry, recipe)
    if recipe.source == "fashion-mnist":
        return mnist.load_fashion(geometry, data_root, download=recipe.download)
    if data_root is None:
        raise AssertionError("the data root was just checked. This is a bug.")
    return _load_from_root(data_root, recipe, geometry, decode)


def _load_from_root(
    data_root: Path, recipe: DataRecipe, geometry: Geometry, decode: DecodeOptions
) -> SourceData:
    if recipe.source == "mnist":
        return mnist.load(geometry, data_root, download=recipe.download)
    if recipe.source == "folder":
        return folder.load(geometry, data_root, decode)
    if recipe.source == "imagenet":
        return imagenet.load(geometry, data_root, decode)
    load_arrays = cifar10.load if recipe.source == "cifar10" else npz.load
    return load_arrays(geometry, data_root, recipe)


__all__ = [
    "WITHOUT_FILES",
    "DataReport",
    "Dataset",
    "EvaluationData",
    "load",
    "load_for_evaluation",
    "load_unchecked",
    "refuse_unread_root",
    "require_root",
    "require_root_named",
]
