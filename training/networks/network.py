"""The base class of all networks: uint8 pixels -> features -> logits, including the scaling of pixels."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.bundle import Pretrained  # noqa: TC001 - one way of importing everywhere

_SHIFT_PX = 1  # of shifted views
_MOVES = ((0, 0, 0.5), (-_SHIFT_PX, -_SHIFT_PX, 0.25), (_SHIFT_PX, _SHIFT_PX, 0.25))  # down, right, weight
_MIRRORED, _MOVED = 2, 6  # views


class Network(nn.Module):
    """A classifier with a trunk and a head. The embedding between them is also published.

    Training, proof and export share this forward pass, so they scale pixels and average views identically.
    """

    trunk: nn.Module

    def __init__(self, embedding_size: int, classes: int, *, views: int = 1) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.views = views
        self.memory_format = torch.contiguous_format
        self.pretrained: Pretrained | None = None
        self.head: nn.Module = nn.Linear(embedding_size, classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Compute the embedding, the activations before the head.

        Args:
            pixels: (N, C, H, W) float32, 0..1.

        Returns: (N, embedding_size) float32.
        """
        embedding: Tensor = self.trunk(pixels)  # (N, embedding_size)
        return embedding

    def logits(self, embedding: Tensor) -> Tensor:
        """(N, embedding_size) -> (N, K). A linear head gives views' mean logits from their mean embedding."""
        logits: Tensor = self.head(embedding)  # (N, K)
        return logits

    def initialise_from_data(self, first: Callable[[int], Tensor]) -> None:
        """Initialise weights from training images, before the first step. Does nothing by default.

        Args:
            first: returns up to n images of the training split, (n, H, W, C) uint8 on the CPU.
        """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images; in evaluation mode, average over all views (test-time augmentation).

        Args:
            images: (N, H, W, C), uint8 or, after augmentation, float32, 0..255.

        Returns: logits (N, K) and embedding (N, embedding_size), float32.
        """
        planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format)
        pixels = planes / 255  # (N, C, H, W) float32, 0..1
        if self.training or self.views == 1:
            embedding = self.features(pixels)
        else:
            embedding = sum(
                (weight * self.features(view) for view, weight in _views(pixels, self.views)),
                start=pixels.new_zeros(()),
            )  # (N, embedding_size)
        return self.logits(embedding), embedding

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Use this memory format for filters and activations.

        The faster format depends on network and machine: on a CPU, channels_last doubles the time of batch
        norm and halves that of wide convolutions.
        """
        self.memory_format = memory_format
        self.to(memory_format=memory_format)  # type: ignore[call-overload]

    def parameter_count(self) -> int:
        """Count the trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _views(pixels: Tensor, views: int) -> Iterator[tuple[Tensor, float]]:
    """Yield each view of the images, (N, C, H, W), and its weight in the mean."""
    _, _, height, width = pixels.shape
    padded = functional.pad(pixels, [_SHIFT_PX] * 4, mode="reflect") if views == _MOVED else pixels
    for down, right, weight in _MOVES if views == _MOVED else ((0, 0, 1.0),):
        top, left = (_SHIFT_PX + down, _SHIFT_PX + right) if views == _MOVED else (0, 0)
        view = padded[:, :, top : top + height, left : left + width]
        yield view, weight / 2
        yield view.flip(3), weight / 2
