"""Pretrained weights: from torchvision, or from a file. Nothing is ever unpickled."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving.bundle import Pretrained
from training.errors import WeightsError
from training.networks.torchvision_import import import_torchvision

FROM_TORCHVISION = "torchvision"

_NESTED_UNDER = ("state_dict", "model_state_dict", "model")  # where training scripts put it
_WRAPPERS = ("module.", "_orig_mod.")  # what data parallelism and torch.compile put before every key

State = dict[str, Tensor]


def read_weights(weights: str, network: str) -> tuple[State, Pretrained]:
    """A state dict, and where it comes from.

    Args:
        weights: "torchvision" for its best ones, fetched once and kept by torch.hub; or the path of a file
            that torch.save or safetensors wrote.
        network: torchvision's name of the network.

    Raises:
        WeightsError: the file is missing, cannot be read, or holds something else.
    """
    path = _fetch(network) if weights == FROM_TORCHVISION else Path(weights)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content = _read(path)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"weights {path} cannot be read: {error}") from error
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


def _read(path: Path) -> Any:  # noqa: ANN401 - of whatever kind it is; `_state` looks at it
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError  # noqa: PLC0415 - only files of this kind need it
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
        raise WeightsError(f"weights {path} hold no state dict, but {type(content).__name__}")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"weights {path} hold something else than tensors: {', '.join(strange[:5])}")
    return {
        _plain(str(key)): value.float() if value.is_floating_point() else value
        for key, value in content.items()
    }


def _plain(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper)
    return key
