"""Reads pretrained weights from torchvision or from a file, without unpickling code."""

import hashlib
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
    path = _fetch(network) if weights == FROM_TORCHVISION else Path(weights)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content = _read(path)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes torch raise anything
        raise WeightsError(f"weights {path} cannot be read: {_NOT_WEIGHTS}") from error
    return _state(content, path), Pretrained(network=network, file=path.name, sha256=digest)


def _fetch(network: str) -> Path:
    best = import_torchvision("torchvision.models").get_model_weights(network).DEFAULT
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(best.url).name
    try:
        best.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"weights could not be downloaded: {best.url}: {getattr(error, 'reason', error)}; "
            f"put the file at {kept}, or name another one with --set network.weights=FILE"
        ) from error
    return kept


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
