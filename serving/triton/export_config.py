"""Writes what Triton needs to open the same repository: config.pbtxt and labels.txt beside the versions.

Both programs look for <model>/<version>/model.onnx. Triton also reads <model>/config.pbtxt, and labels from a
file in the same folder with one label in each line; neither disturbs a server of this project.
"""

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format

from serving.bundle import STABLE_ALIAS, Bundle, Repository
from serving.errors import BundleError, UnknownModel
from serving.limited_files import read_limited
from serving.pb.inference import model_config_pb2 as pb
from serving.rpc.open_inference import tensors
from serving.rpc.open_inference.model_config import model_config

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
_MARK = "# Written by `lenserve models export-config`."
_MAX_CONFIG_BYTES = 2**20


def export_config(bundle: Bundle, *, max_batch_size: int) -> Path:
    """Write Triton's files into the folder of a model, each atomically.

    Args:
        bundle: the version that Triton serves; it keeps to it when a newer one is published.
        max_batch_size: images that Triton runs at once.

    Returns: the folder of the model.

    Raises:
        BundleError: a label has several lines, or another program wrote the files that are there.
    """
    folder, labels = bundle.folder.parent, bundle.manifest.labels
    broken = [label for label in labels if len(label.splitlines()) != 1]
    if broken:
        raise BundleError(
            f"label {broken[0]!r} of {bundle.model} version {bundle.version} has several lines, and Triton's "
            "file of labels has one line for each: publish a version with other labels"
        )
    _require_ours(folder / CONFIG_FILE)
    _replace(folder / LABELS_FILE, "".join(f"{label}\n" for label in labels))
    _replace(folder / CONFIG_FILE, "\n".join(_lines(bundle, max_batch_size)))
    return folder


def _lines(bundle: Bundle, max_batch_size: int) -> Sequence[str]:
    config = model_config(
        bundle.model, bundle.manifest, max_batch_size=max_batch_size, label_file=LABELS_FILE
    )
    config.output.append(
        pb.ModelOutput(name=tensors.EMBEDDING, data_type=pb.TYPE_FP32, dims=[bundle.manifest.embedding_size])
    )
    config.version_policy.specific.versions.append(bundle.version)
    return (
        f"{_MARK} Run it again to serve another version.",
        f"# Version {bundle.version}, {bundle.digest[:12]}. Pixels are uint8, RGB or grey.",
        text_format.MessageToString(config),
    )


def served_version(repository: Repository, name: str) -> Bundle:
    """Return the version that `stable` names, or else the newest.

    Raises:
        UnknownModel: the repository has no such model or version.
        BundleError: its files are damaged.
    """
    versions = repository.versions(name)
    if not versions:
        raise UnknownModel(f"the repository has no version of model {name!r}", tuple(repository.models()))
    return repository.read(name, repository.aliases(name).get(STABLE_ALIAS, versions[-1]))


def _require_ours(path: Path) -> None:
    try:
        text = read_limited(path, _MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.startswith(_MARK.encode()):
        raise BundleError(f"{path} was not written by this command: move it away, and run the command again")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}") from error
