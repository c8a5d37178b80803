"""What a champion knows of the challenger's images: which ones it was trained on, and under which labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.bundle import Bundle
from training.champion.known_images import (
    KNOWN_IMAGES_FILE,
    prefixes,
    read_image_labels,
    read_known_images,
)
from training.data import Dataset
from training.data.assignment import REMOVED, SPLITS_FILE, read_assignment, read_file_labels
from training.data.relabelled import Relabelled, find_relabelled, one_label_each
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
    test, report = dataset.test, champion.folder / "report"
    assignment, known = read_assignment(report / SPLITS_FILE), read_known_images(report / KNOWN_IMAGES_FILE)
    new = np.ones(len(test), bool)
    if assignment is not None and test.digests:
        files = {digest for digest, split in assignment.items() if split not in ("test", REMOVED)}
        new &= np.array([digest not in files for digest in test.digests])
    if known is not None:
        new &= ~np.isin(prefixes(images), known)
    indices = np.flatnonzero(new)
    if assignment is None and known is None:
        if champion.manifest.provenance.data_digest == dataset.digest():  # the same images and splits
            return Knowledge(indices)
        return Knowledge(indices, f"version {champion.version} does not record its training images")
    if (assignment is None) == bool(test.digests):
        theirs, ours = ("arrays", "files") if test.digests else ("files", "arrays")
        return Knowledge(
            indices,
            f"version {champion.version} was trained on {theirs}, this one on {ours}, so images of both "
            "are found only where their pixels are equal: look at its report, then promote it by hand",
        )
    return Knowledge(indices)


def relabelled_since(champion: Bundle, dataset: Dataset) -> Relabelled | None:
    """Find images that the champion knows under another label, by their files or their pixels.

    Args:
        champion: the version.
        dataset: of the challenger. In another geometry than the champion's only files are recognized.

    Returns: None if the champion does not record labels, as versions of earlier releases.
    """
    report = champion.folder / "report"
    of_file = read_file_labels(report / SPLITS_FILE)
    of_pixels = read_image_labels(report / KNOWN_IMAGES_FILE, champion.manifest.labels)
    if not of_file and not of_pixels:
        return None
    then: dict[int, str] = {}
    now: list[tuple[int, str]] = []
    for split in dataset.splits().values():
        digests = split.digests or (b"",) * len(split)
        for image, digest, label in zip(prefixes(split.images).tolist(), digests, split.labels, strict=True):
            if known := of_file.get(digest) or of_pixels.get(image):
                then[image] = known
            now.append((image, dataset.labels[label]))
    return find_relabelled(then, one_label_each(now))
