"""Reads pretrained weights from torchvision or from a file, without unpickling code."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving.bundle import Pretrained
from training.errors import WeightsError
from training.networks.torchvision_import import import_torchvision

FROM_TORCHVISION = "torchvision"

# Keys under which training scripts save the state dict.
_NESTED_UNDER = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes added by data parallelism and torch.compile

# Files of whole models are a common mistake, and PyTorch's error message advises to load them unsafely.
_NOT_WEIGHTS = (
    "it is not a state dict saved by torch.save or safetensors; whole pickled models are not loaded, because "
    "they can run code"
)

_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")  # the start of a SHA-256

State = dict[str, Tensor]


def read_weights(weights: str, network: str) -> tuple[State, Pretrained]:
    """Read a state dict.

    Args:
        weights: "torchvision" for its default weights, downloaded once and kept in torch.hub's cache; or the
            path of a file written by torch.save or safetensors.
        network: torchvision's name of the network.

    Returns: the state dict on the CPU, floating-point values as float32; and its origin, for the manifest.

    Raises:
        WeightsError: the file is missing, cannot be read, or does not contain a state dict.
    """
    is_cached = weights == FROM_TORCHVISION
    path = _fetch(network) if is_cached else Path(weights)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content = _read(path)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes torch raise anything
        again = "; delete the file, and it is downloaded again" if is_cached else ""
        raise WeightsError(f"weights {path} cannot be read: {_NOT_WEIGHTS}{again}") from error
    return _state(content, path), Pretrained(network=network, file=path.name, sha256=digest)


def _fetch(network: str) -> Path:
    best = import_torchvision("torchvision.models").get_model_weights(network).DEFAULT
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(best.url).name
    if kept.exists():
        return kept
    try:
        best.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"weights could not be downloaded: {best.url}: {getattr(error, 'reason', error)}; "
            f"put the file at {kept}, or name another one with --set network.weights=FILE"
        ) from error
    return kept


def doubt(pretrained: Pretrained) -> str | None:
    """A warning, if the name of torchvision's file, as squeezenet1_1-b8a52dc0.pth, has another digest."""
    named = _DIGEST_IN_NAME.search(pretrained.file)
    if named is None or pretrained.sha256.startswith(named[1]):
        return None
    return (
        f"weights {pretrained.file} are damaged, or others than their name says: its SHA-256 begins with "
        f"{pretrained.sha256[: len(named[1])]}; delete the file, and torchvision's is downloaded again"
    )


def _read(path: Path) -> Any:  # noqa: ANN401 - `_state` checks the type
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError  # noqa: PLC0415 - needed only for this kind of file
        from safetensors.torch import load_file  # noqa: PLC0415 - as above

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(error) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _state(content: object, path: Path) -> State:
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"weights {path} contain {type(content).__name__}, not a state dict of named tensors"
        )
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"weights {path} contain values that are not tensors: {', '.join(strange[:5])}")
    return {
        _plain(str(key)): value.float() if value.is_floating_point() else value
        for key, value in content.items()
    }


def _plain(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper)
    return key
