"""Images where they fit: on the device, in memory, or on disk. What is asked for comes to the device."""

import torch
from torch import Tensor

from training.data.storage.disk_images import DiskImages, Images

_SHARE = 0.5  # of a GPU's free memory: the network's maps need the rest


class DeviceImages:
    """(N, H, W, C) uint8, or features (N, D) float32: a class because they are moved to the device once."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.device = device
        self.shape = images.shape
        self._images: Tensor | DiskImages
        if isinstance(images, DiskImages):
            self._images = images
        else:
            whole = torch.from_numpy(images)
            self._images = whole.to(device) if _fits(whole, device) else whole

    @property
    def index_device(self) -> torch.device:
        """Where indices are wanted: elsewhere they would have to wait for the device."""
        return self._images.device if isinstance(self._images, Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Images on the device.

        Args:
            index: of images, a slice or (n,) int64.

        Raises:
            DataError: they lie in a file that can no longer be read.
        """
        if isinstance(self._images, Tensor):
            chosen = self._images[index if isinstance(index, slice) else index.to(self.index_device)]
        else:
            rows = index if isinstance(index, slice) else index.cpu().numpy()
            chosen = torch.from_numpy(self._images[rows])
        return to_device(chosen, self.device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The same values on the device.

    To a GPU they go from pinned memory: then the copy does not wait for the steps that it has yet to do.
    """
    if values.device.type == device.type:
        return values
    return values.pin_memory().to(device, non_blocking=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= _SHARE * free_bytes
