"""What a champion knows of the challenger's images: which ones it was trained on, and under which labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.bundle import Bundle
from training.champion.known_images import (
    KNOWN_IMAGES_FILE,
    image_labels,
    prefixes,
    read_image_labels,
    read_known_images,
)
from training.data import Dataset
from training.data.assignment import REMOVED, SPLITS_FILE, labels_of, read_assignment, read_file_labels
from training.data.relabelled import Relabelled, find_relabelled
from training.data.storage.disk_images import Images


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the champion's report says about the images of another version."""

    new: npt.NDArray[np.intp]  # indices of test images that it was not trained on
    why_uncertain: str = ""  # why it may have been trained on some of them all the same


def knowledge_of(champion: Bundle, dataset: Dataset, images: Images) -> Knowledge:
    """Find the test images that the champion was not trained on.

    Args:
        champion: the version.
        dataset: of the challenger.
        images: its test images in the champion's geometry.
    """
    test, every = dataset.test, np.arange(len(dataset.test))
    report = champion.folder / "report"
    if test.digests:
        assignment = read_assignment(report / SPLITS_FILE)
        if assignment is not None:
            files = {digest for digest, split in assignment.items() if split not in ("test", REMOVED)}
            return Knowledge(np.flatnonzero([digest not in files for digest in test.digests]))
    else:
        known = read_known_images(report / KNOWN_IMAGES_FILE)
        if known is not None:
            return Knowledge(np.flatnonzero(~np.isin(prefixes(images), known)))
    if champion.manifest.provenance.data_digest == dataset.digest():  # the same images in the same splits
        return Knowledge(every)
    other = KNOWN_IMAGES_FILE if test.digests else SPLITS_FILE
    if (report / other).is_file():
        theirs, ours = ("arrays", "files") if test.digests else ("files", "arrays")
        return Knowledge(
            every,
            f"version {champion.version} was trained on {theirs}, this one on {ours}, so images of both "
            "cannot be found: look at its report, then promote it by hand",
        )
    return Knowledge(every, f"version {champion.version} does not record its training images")


def relabelled_since(champion: Bundle, dataset: Dataset) -> Relabelled:
    """Find images that the champion knows under another label.

    Args:
        champion: the version.
        dataset: of the challenger, in the champion's geometry unless its images are files.
    """
    report = champion.folder / "report"
    if dataset.test.digests:
        return find_relabelled(read_file_labels(report / SPLITS_FILE), labels_of(dataset))
    theirs = read_image_labels(report / KNOWN_IMAGES_FILE, champion.manifest.labels)
    return find_relabelled(theirs, image_labels(dataset) if theirs else {})
