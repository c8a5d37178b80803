"""weights.safetensors: the weights of a network beside its report, for pictures that need gradients."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from training.atomic_files import RESUME
from training.errors import WeightsError, WriteError

WEIGHTS_FILE = "weights.safetensors"

MAX_BYTES = 200_000_000  # a larger network's weights would double the size of its bundle


def write_weights(folder: Path, network: nn.Module) -> bool:
    """Write the state of a network, if it is smaller than 200 MB.

    Returns: whether the file was written.

    Raises:
        WriteError: the file cannot be written.
    """
    path = folder / WEIGHTS_FILE
    if state_bytes(network) > MAX_BYTES:
        path.unlink(missing_ok=True)  # of an earlier run in the same folder
        return False
    try:
        with torch.no_grad():
            save_model(network, str(path))  # stores tensors that modules share once
    except SafetensorError as error:  # its own I/O errors are no OSError
        path.unlink(missing_ok=True)
        raise WriteError(f"{path} cannot be written: {_reason(error)}; {RESUME}") from error
    return True


def _reason(error: SafetensorError) -> str:
    """`No space left on device (os error 28)`, without the names of safetensors' error kinds."""
    return str(error).rpartition("I/O error: ")[2]


def read_weights_file(folder: Path) -> dict[str, Tensor]:
    """Read the state of a network. Tensors that modules share are there under one of their names.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} is missing: versions published before it was introduced, or with more than "
            f"{MAX_BYTES // 10**6} MB of weights, do not have it"
        ) from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def state_bytes(network: nn.Module) -> int:
    """Size of the parameters and buffers of a network; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
