"""Images on the device, in memory and on disk are indexed alike."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.storage.device_images import DeviceImages
from training.data.storage.disk_images import DiskImages, Images

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def on_disk(folder: Path) -> DiskImages:
    """The same images in a file."""
    (folder / "images").write_bytes(PIXELS.tobytes())
    return DiskImages(folder / "images", 0, PIXELS.shape)


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
    """By slice and by indices; images too large for the device stay in memory or on disk."""
    if place == "memory":
        monkeypatch.setattr("training.data.storage.device_images._SHARE", 0.0)
    images: Images = on_disk(tmp_path) if place == "disk" else PIXELS
    placed = DeviceImages(images, torch.device(device))
    chosen = torch.tensor([7, 0, 7])
    assert placed[chosen.to(placed.index_device)].device.type == device
    assert torch.equal(placed[chosen].cpu(), torch.from_numpy(PIXELS[[7, 0, 7]]))
    assert torch.equal(placed[3:9].cpu(), torch.from_numpy(PIXELS[3:9]))
    assert (len(placed), placed.shape) == (20, PIXELS.shape)
    assert placed.index_device.type == (device if place == "device" else "cpu")
