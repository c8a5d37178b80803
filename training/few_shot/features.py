"""Computes features of frozen layers, with a cache on disk keyed by weights and images."""

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.atomic_files import exclusive_lock, replace_file
from training.data.batches import inference_batches
from training.data.storage.decoded_images import ProgressCallback
from training.data.storage.device_images import DeviceImages
from training.data.storage.disk_images import Images, feed_digest
from training.devices.kernels import full_precision

Features = npt.NDArray[np.float32]


@torch.no_grad()
def extract_features(
    extractor: nn.Module,
    images: Images,
    *,
    name: str,
    device: torch.device,
    cache: Path,
    on_progress: ProgressCallback,
) -> Features:
    """Compute the features of images, or read them from the cache.

    Args:
        extractor: frozen layers, (N, H, W, C) uint8 -> (N, D) float32.
        images: (N, H, W, C) uint8 in the network's geometry.
        name: network, layer and pooling, which determine the features together with the weights.
        device: device to compute on.
        cache: directory of the cache, created if missing.
        on_progress: called after each batch; may raise to stop.

    Returns: (N, D) float32.

    Raises:
        DataError: images on disk can no longer be read.
    """
    path = cache / f"features-{_digest(extractor, images, name)[:32]}.npy"
    with exclusive_lock(path.with_suffix(".lock")):  # only one process of a run computes them
        found = _read(path, len(images))
        if found is not None:
            return found
        extractor = extractor.to(device).eval()
        parts: list[Tensor] = []
        with full_precision(device):  # the cache key does not include the kernels
            for batch in inference_batches(DeviceImages(images, torch.device("cpu"))):
                parts.append(extractor(batch.to(device)).float().cpu())
                on_progress(sum(map(len, parts)), len(images))
        features = torch.cat(parts).numpy()  # (N, D)
        _write(path, features)
    return features


def _digest(extractor: nn.Module, images: Images, name: str) -> str:
    sha = hashlib.sha256(f"{name} {images.shape}".encode())
    for key, value in extractor.state_dict().items():
        sha.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    feed_digest(sha.update, [images])
    return sha.hexdigest()


def _read(path: Path, count: int) -> Features | None:
    """Read cached features; None if they are missing or damaged."""
    try:
        with path.open("rb") as file:
            features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_sound = features.dtype == np.float32 and features.ndim == 2 and len(features) == count  # noqa: PLR2004
    return features if is_sound else None


def _write(path: Path, features: Features) -> None:
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    replace_file(path, buffer.getvalue())
