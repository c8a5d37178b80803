"""Writes what Triton needs to open the same repository: config.pbtxt and labels.txt beside the versions.

Both programs look for <model>/<version>/model.onnx. Triton also reads <model>/config.pbtxt, and labels from a
file in the same folder with one label in each line; neither disturbs a server of this project.
"""

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format

from serving.bundle import STABLE_ALIAS, Bundle, Repository
from serving.bundle.operations import require_model, split_name, version_named
from serving.errors import BundleError, UsageError
from serving.limited_files import read_limited, why_unreadable
from serving.pb.inference import model_config_pb2 as pb
from serving.rpc.open_inference import tensors
from serving.rpc.open_inference.model_config import model_config

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
_MARK = "# Written by `lenserve models export-config`."
_MAX_FILE_BYTES = 64 * 2**20


def export_configs(bundles: Sequence[Bundle], *, max_batch_size: int) -> list[Path]:
    """Write Triton's files into the folder of each model, each file atomically.

    Args:
        bundles: the versions that Triton serves; it keeps to them when newer ones are published.
        max_batch_size: images that Triton runs at once.

    Returns: the folders of the models.

    Raises:
        BundleError: a label has several lines, or another program wrote a file that is there, and nothing is
            written; or a file cannot be written.
    """
    for bundle in bundles:
        _require_single_lines(bundle)
        _require_ours(bundle)
    folders = []
    for bundle in bundles:
        folder = bundle.folder.parent
        _replace(folder / LABELS_FILE, _labels(bundle))
        _replace(folder / CONFIG_FILE, "\n".join(_lines(bundle, max_batch_size)))
        folders.append(folder)
    return folders


def _require_single_lines(bundle: Bundle) -> None:
    broken = [label for label in bundle.manifest.labels if len(label.splitlines()) != 1]
    if broken:
        raise BundleError(
            f"label {broken[0]!r} of {bundle.model} version {bundle.version} has several lines, and Triton's "
            "file of labels has one line for each: publish a version with other labels"
        )


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


def chosen_versions(repository: Repository, named: Sequence[str]) -> list[Bundle]:
    """Return the versions that are named, each verified.

    Args:
        repository: where they are.
        named: MODEL, MODEL@VERSION or MODEL@ALIAS, one for each model; none: every model.

    Raises:
        BundleError: the files of a version are damaged.
        UnknownModel: the repository has no such model, version or alias.
        UsageError: the repository has no models, or a model is named twice.
    """
    names = named or repository.models()
    if not names:
        raise UsageError(f"{repository.root} has no models yet: name a directory of published models")
    models = [split_name(name)[0] for name in names]
    if twice := next((model for model in models if models.count(model) > 1), None):
        raise UsageError(
            f"{twice} is named {models.count(twice)} times, and Triton reads one config.pbtxt of a model: "
            "name one version of it"
        )
    return [_chosen_version(repository, name) for name in names]


def _chosen_version(repository: Repository, named: str) -> Bundle:
    model, revision = split_name(named)
    require_model(repository, model)
    if revision:
        return repository.read(model, version_named(repository, model, revision))
    newest = repository.versions(model)[-1]
    return repository.read(model, repository.aliases(model).get(STABLE_ALIAS, newest))


def _require_ours(bundle: Bundle) -> None:
    """Check that neither file was written by another program."""
    folder = bundle.folder.parent
    config, labels = _read(folder / CONFIG_FILE), _read(folder / LABELS_FILE)
    if config is not None and not config.startswith(_MARK.encode()):
        raise BundleError(
            f"{folder / CONFIG_FILE} was not written by this command: move it away, and run the command again"
        )
    if config is None and labels not in (None, _labels(bundle).encode()):
        raise BundleError(
            f"{folder / LABELS_FILE} was not written by this command, which would replace it: move it away, "
            "and run the command again"
        )


def _read(path: Path) -> bytes | None:
    try:
        return read_limited(path, _MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {why_unreadable(error)}; make it readable, or move it away"
        ) from error


def _labels(bundle: Bundle) -> str:
    return "".join(f"{label}\n" for label in bundle.manifest.labels)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written: {error.strerror}; make room, or correct permissions of {path.parent}"
        ) from error
