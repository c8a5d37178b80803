"""Training batches as a pure function of epoch and step, and batches of all images for inference."""

from collections.abc import Iterator

import torch
from torch import Tensor

from training.data.augmentation.mixing import draw_mixture, mix
from training.data.augmentation.pipeline import augment, flip_coins
from training.data.augmentation.uniforms import draw_uniforms
from training.data.sampling import balanced_order, epoch_order, steps_per_epoch
from training.data.splits import Split
from training.data.storage.device_images import DeviceImages, to_device
from training.devices.process_group import ProcessGroup
from training.recipe import Recipe

_MOST_AT_ONCE = 1000  # images; larger batches are no faster
_MOST_PIXELS_AT_ONCE = 16 * 224 * 224  # 512 feature maps of this size, as in the widest network, take 1.6 GB


class Batches:
    """The batches of a training split.

    There are no loader workers: a batch is indexed (or read from disk), augmented and mixed as a whole, on
    the device.
    """

    def __init__(
        self, recipe: Recipe, split: Split, classes: int, device: torch.device, group: ProcessGroup
    ) -> None:
        self.images = DeviceImages(split.images, device)  # (N, H, W, C) uint8
        self.labels = torch.from_numpy(split.labels).to(device)  # (N,) int64
        self.steps = steps_per_epoch(len(split), recipe.training.batch_size)
        self.batch_size = min(recipe.training.batch_size, len(split))
        self._recipe = recipe
        self._classes = classes
        self._group = group
        self._coins = flip_coins(len(split), recipe.training.seed).to(device)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's rows of one batch, on the device.

        Args:
            epoch: from 0.
            step: 0..steps - 1, within the epoch.

        Returns: images (b, H, W, C), uint8 or float32, 0..255; and targets, (b,) int64 labels or, if the
            recipe mixes images, (b, K) float32 probabilities.

        Raises:
            DataError: images on disk can no longer be read.
        """
        recipe, seed = self._recipe.augmentation, self._recipe.training.seed
        batch = self._order_of(epoch)[step * self.batch_size : (step + 1) * self.batch_size]  # (B,)
        mine = self._group.rows(len(batch))
        uniforms = to_device(draw_uniforms(len(batch), seed=seed, epoch=epoch, step=step), self.images.device)
        images = self._augmented(batch[mine], uniforms[mine], epoch)
        mixture = draw_mixture(len(batch), recipe, seed=seed, epoch=epoch, step=step)
        if mixture is None:
            return images, self.labels[batch[mine]]
        partners = to_device(torch.from_numpy(mixture.partners), batch.device)[mine]
        if self._group.size == 1:
            others = images[partners]
        else:  # a partner may belong to another process: recompute it here from the same random numbers
            others = self._augmented(batch[partners], uniforms[partners], epoch)
        labels, other_labels = self.labels[batch[mine]], self.labels[batch[partners]]
        return mix(images, labels, others, other_labels, mixture=mixture, classes=self._classes)

    def _augmented(self, chosen: Tensor, uniforms: Tensor, epoch: int) -> Tensor:
        return augment(
            self.images[chosen],
            uniforms,
            self._recipe.augmentation,
            background=self._recipe.geometry.background,
            epoch=epoch,
            coins=self._coins[chosen],
        )

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            seed = self._recipe.training.seed
            balanced = self._recipe.training.class_balance == "sampler"
            order = (
                balanced_order(self.labels, seed, epoch)
                if balanced
                else epoch_order(len(self.labels), seed, epoch)
            )
            self._order, self._epoch = order.to(self.images.index_device), epoch
        return self._order


def inference_batches(images: Tensor | DeviceImages, rows: range | None = None) -> Iterator[Tensor]:
    """Yield images (N, H, W, C) or features (N, D) in batches sized for a forward pass without gradients.

    Args:
        images: read lazily, one batch at a time.
        rows: a range of step 1; None: all.
    """
    rows = range(len(images)) if rows is None else rows
    pixels = images.shape[1] * images.shape[2] if len(images.shape) == 4 else 1  # noqa: PLR2004 - (N, H, W, C)
    count = max(1, min(_MOST_AT_ONCE, _MOST_PIXELS_AT_ONCE // pixels))
    for start in rows[::count] or [rows.start]:  # no images: one empty batch
        yield images[start : min(start + count, rows.stop)]
