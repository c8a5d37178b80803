"""Wherever images lie, what is asked for is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.storage.placed import Placed
from training.data.storage.stored import Images, StoredImages

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def on_disk(folder: Path) -> StoredImages:
    """The same images in a file."""
    (folder / "images").write_bytes(PIXELS.tobytes())
    return StoredImages(folder / "images", 0, PIXELS.shape)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("place", ["disk", "memory", "device"])
def test_images_come_to_the_device_from_where_they_lie(
    place: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a slice and by indices; those that are too many for the device stay in memory or on disk."""
    if place == "memory":
        monkeypatch.setattr("training.data.storage.placed._SHARE", 0.0)
    images: Images = on_disk(tmp_path) if place == "disk" else PIXELS
    placed = Placed(images, torch.device(device))
    chosen = torch.tensor([7, 0, 7])
    assert placed[chosen.to(placed.home)].device.type == device
    assert torch.equal(placed[chosen].cpu(), torch.from_numpy(PIXELS[[7, 0, 7]]))
    assert torch.equal(placed[3:9].cpu(), torch.from_numpy(PIXELS[3:9]))
    assert (len(placed), placed.shape) == (20, PIXELS.shape)
    assert placed.home.type == (device if place == "device" else "cpu")
