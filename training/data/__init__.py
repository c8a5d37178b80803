"""Data sources: each yields images in model geometry, made by the very code that the server runs."""

from pathlib import Path

from serving.bundle import Geometry
from training.data.checks import DataReport, check
from training.data.sources import cifar10, digits, fake, folder, imagenet, mnist, npz
from training.data.splits import Collected, Dataset, divide
from training.data.storage.decoded import Decoding, Watch, unwatched
from training.data.storage.memory import image_limit_bytes
from training.errors import DataError
from training.recipe import DataRecipe


def load(
    recipe: DataRecipe,
    geometry: Geometry,
    data_root: Path | None,
    cache: Path | None = None,
    *,
    processes: int = 1,
    watch: Watch = unwatched,
) -> tuple[Dataset, DataReport]:
    """Collect, divide and check.

    Args:
        recipe: which data.
        geometry: into which each image is brought.
        data_root: for sources that read files.
        cache: folder that keeps by content what takes long, verdicts and decoded images; none: made anew.
        processes: that share this machine's memory.
        watch: is told how many of how many files are decoded; what it raises ends the work.

    Raises:
        DataError: the data are missing, broken, or too few.
    """
    decoding = Decoding(cache, image_limit_bytes(recipe.memory_limit_gib, processes), watch)
    collected = _collect(recipe, geometry, data_root, decoding)
    return check(_divide(collected, recipe), collected, recipe, cache)


def load_unchecked(
    recipe: DataRecipe, geometry: Geometry, data_root: Path | None, cache: Path | None = None
) -> Dataset:
    """The same test split as `load` gives, whether or not one could train with the rest."""
    decoding = Decoding(cache, image_limit_bytes(recipe.memory_limit_gib))
    return _divide(_collect(recipe, geometry, data_root, decoding), recipe)


def _divide(collected: Collected, recipe: DataRecipe) -> Dataset:
    return divide(
        collected,
        test_fraction=recipe.test_fraction,
        validation_fraction=recipe.validation_fraction,
        seed=recipe.split_seed,
        group_pattern=recipe.group_pattern,
    )


def _collect(recipe: DataRecipe, geometry: Geometry, data_root: Path | None, decoding: Decoding) -> Collected:
    if recipe.source == "digits":
        return digits.collect(geometry)
    if recipe.source == "fake":
        return fake.collect(geometry, recipe)
    if recipe.source == "fashion-mnist":
        return mnist.collect_fashion(geometry, data_root, download=recipe.download)
    if data_root is None:
        raise DataError(f"data source {recipe.source} needs --data-root, the folder that holds its files")
    return _collect_below(data_root, recipe, geometry, decoding)


def _collect_below(data_root: Path, recipe: DataRecipe, geometry: Geometry, decoding: Decoding) -> Collected:
    if recipe.source == "mnist":
        return mnist.collect(geometry, data_root, download=recipe.download)
    if recipe.source == "folder":
        return folder.collect(geometry, data_root, decoding, val_is_test=recipe.val_is_test)
    if recipe.source == "imagenet":
        return imagenet.collect(geometry, data_root, decoding)
    collect = cifar10.collect if recipe.source == "cifar10" else npz.collect
    return collect(geometry, data_root, recipe)


__all__ = ["DataReport", "Dataset", "load", "load_unchecked"]
