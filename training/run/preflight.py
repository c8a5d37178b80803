"""Finds what would end a run after hours, before it decodes an image: no room, no permission, no weights."""

import shutil
from pathlib import Path

from serving.bundle import Geometry
from serving.bundle.staging import require_writable
from training.errors import WriteError
from training.networks import Network, build
from training.networks.backbones import build_classifier
from training.networks.layer_features import build_extractor
from training.networks.weights import doubt
from training.recipe import Recipe, known_classes

_MIB = 2**20
_REPORT_BYTES = 4 * _MIB  # of figures, HTML and JSON; kept in the run folder and in the bundle
_PARAMETER_BYTES = 4
_CHECKPOINT_COPIES = 4  # the weights and the best ones, while a new checkpoint replaces the old one
_ANY_CLASSES = 2  # of a data set whose labels are not read yet


def preflight(recipe: Recipe, run_dir: Path, repository: Path) -> list[str]:
    """Check what does not need the data.

    Returns: warnings.

    Raises:
        WriteError: the run folder or the repository cannot be written, or has too little space.
        RecipeError: the network cannot be built from the recipe.
        WeightsError: pretrained weights cannot be read, or do not fit the network.
    """
    check_writable(run_dir, "--run-dir")
    check_writable(repository, "--repository")
    network = _build(recipe, recipe.geometry)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    exported = parameters * _PARAMETER_BYTES
    training = exported * _CHECKPOINT_COPIES if recipe.method == "train" else 0
    of_bundle = exported + _REPORT_BYTES
    check_space({run_dir: training + of_bundle, repository: of_bundle})
    doubtful = None if network.pretrained is None else doubt(network.pretrained)
    return [] if doubtful is None else [doubtful]


def check_writable(folder: Path, option: str) -> None:
    """Create a file in a folder, or in the nearest one above that exists, and leave nothing behind.

    Raises:
        WriteError: the folder cannot be written.
    """
    try:
        require_writable(folder)
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror}; choose another {option}") from error


def check_space(needed_bytes: dict[Path, int]) -> None:
    """Compare the free space with the least that a run writes; folders of one file system share it.

    Args:
        needed_bytes: of each folder, which need not exist.

    Raises:
        WriteError: a file system has too little space.
    """
    by_device: dict[int, list[Path]] = {}
    for folder in needed_bytes:
        by_device.setdefault(_nearest_existing(folder).stat().st_dev, []).append(folder)
    for folders in by_device.values():
        needed = sum(needed_bytes[folder] for folder in folders)
        free = shutil.disk_usage(_nearest_existing(folders[0])).free
        if free < needed:
            raise WriteError(
                f"{' and '.join(map(str, folders))}: {free / _MIB:.1f} MiB are free, checkpoints, exported "
                f"files and report need at least {needed / _MIB:.1f} MiB: make room, or choose another place"
            )


def _build(recipe: Recipe, geometry: Geometry) -> Network:
    if recipe.method == "as-is":
        return build_classifier(recipe.network, geometry)
    classes = known_classes(recipe) or _ANY_CLASSES
    if recipe.method == "few-shot":
        return build_extractor(recipe.network, recipe.head, geometry, classes).network
    return build(recipe.network, geometry, classes)


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
