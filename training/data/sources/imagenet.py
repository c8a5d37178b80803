"""ImageNet images for evaluation; files or directories are named by synset, as in n01443537_goldfish.JPEG."""

import re
from importlib import resources
from pathlib import Path

from serving.bundle import Geometry
from training.data.sources import folder
from training.data.sources.folder_layout import files, is_image, readable
from training.data.splits import SourceData
from training.data.storage.decoded_images import IN_MEMORY, DecodeOptions
from training.errors import DataError
from training.networks.torchvision_import import import_torchvision

_SYNSET = re.compile(r"n\d{8}")


def load(
    geometry: Geometry,
    root: Path,
    decode: DecodeOptions = IN_MEMORY,
) -> SourceData:
    """Load all images below the root as the test split; the training and validation splits are empty.

    Args:
        geometry: the size and channels of the decoded images.
        root: directory of the images, searched recursively.
        decode: where decoded images are kept.

    Raises:
        DataError: the directory is missing, or no image in it is named by a synset.
    """
    if not root.is_dir():
        raise DataError(f"the data root {readable(root)} is not a directory")
    index = {synset: number for number, synset in enumerate(synsets())}
    items, ignored = [], []
    for path in files(root):
        name = readable(path.relative_to(root))
        label = next((index[part] for part in _SYNSET.findall(name) if part in index), None)
        if label is None or not is_image(path):
            ignored.append(name)
        else:
            items.append(folder.ImageFile(path, name, label))
    if not items:
        raise DataError(f"{readable(root)} has no image named by its synset, such as n01443537_goldfish.JPEG")
    undecodable: dict[str, str] = {}
    streamed = folder.exceeds(decode.limit_bytes, len(items), geometry)
    test = folder.decode_split(items, geometry, undecodable, decode, streamed=streamed)
    return SourceData(
        labels=categories(),
        train=test.take(slice(0)),
        validation=test.take(slice(0)),
        test=test,
        undecodable=undecodable,
        ignored=tuple(ignored),
    )


def synsets() -> tuple[str, ...]:
    """WordNet synset IDs of the 1,000 classes, in the order of their indices."""
    text = (resources.files("training.data.sources") / "imagenet_synsets.txt").read_text(encoding="ascii")
    return tuple(text.split())


def categories() -> tuple[str, ...]:
    """Names of the 1,000 classes by torchvision, in the same order; duplicates get their synset appended."""
    names = import_torchvision("torchvision.models").get_model_weights("resnet50").DEFAULT.meta["categories"]
    return tuple(
        f"{name} ({synset})" if names.count(name) > 1 else name
        for name, synset in zip(names, synsets(), strict=True)
    )
