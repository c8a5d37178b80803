"""Images that are read on the device, whether they are kept there, in memory, or on disk."""

import torch
from torch import Tensor

from training.data.storage.disk_images import DiskImages, Images

_SHARE = 0.5  # of a GPU's free memory; the rest is for the network's activations


class DeviceImages:
    """(N, H, W, C) uint8 images or (N, D) float32 features, moved to the device once if they fit there."""

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
        """Where index tensors should be; from elsewhere, indexing would wait for the device."""
        return self._images.device if isinstance(self._images, Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Return images on the device.

        Args:
            index: a slice or (n,) int64.

        Raises:
            DataError: images on disk can no longer be read.
        """
        if isinstance(self._images, Tensor):
            chosen = self._images[index if isinstance(index, slice) else index.to(self.index_device)]
        else:
            rows = index if isinstance(index, slice) else index.cpu().numpy()
            chosen = torch.from_numpy(self._images[rows])
        return to_device(chosen, self.device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device, unless it is there already.

    To a GPU it is copied from pinned memory, asynchronously: the copy does not wait for queued kernels.
    """
    if values.device.type == device.type:
        return values
    return values.pin_memory().to(device, non_blocking=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= _SHARE * free_bytes
