"""LeNet-5 (LeCun et al. 1998) as it is taught today: ReLU and max pooling, 61,706 parameters at 28x28x1."""

from collections.abc import Iterator

from torch import Tensor, nn

from serving.bundle import Geometry
from training.errors import RecipeError
from training.networks.network import Network

_SMALLEST_SIDE = 12  # pixels; below it nothing is left after the second pooling
_MAPS = (6, 16)
_HIDDEN = (120, 84)


class LeNet5(Network):
    """Two convolutions and three dense layers; batch norm and dropout where asked for."""

    def __init__(self, geometry: Geometry, classes: int, *, batch_norm: bool, dropout: float) -> None:
        super().__init__(embedding_size=_HIDDEN[1], classes=classes)
        height, width = _pooled(geometry.height), _pooled(geometry.width)
        self.convolutions = nn.Sequential(
            nn.Conv2d(geometry.channels, _MAPS[0], kernel_size=5, padding="same", bias=True),
            *_activation(nn.BatchNorm2d(_MAPS[0]) if batch_norm else None),
            nn.MaxPool2d(2),
            nn.Conv2d(_MAPS[0], _MAPS[1], kernel_size=5),
            *_activation(nn.BatchNorm2d(_MAPS[1]) if batch_norm else None),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(
            nn.Linear(_MAPS[1] * height * width, _HIDDEN[0]),
            *_activation(nn.BatchNorm1d(_HIDDEN[0]) if batch_norm else None),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN[0], _HIDDEN[1]),
            *_activation(nn.BatchNorm1d(_HIDDEN[1]) if batch_norm else None),
            nn.Dropout(dropout),
        )

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) float32, 0..1 -> (N, 84) float32."""
        flat = self.convolutions(pixels)  # (N, 400) at 28x28
        embedding: Tensor = self.hidden(flat)  # (N, 84)
        return embedding


def _activation(norm: nn.Module | None) -> Iterator[nn.Module]:
    if norm is not None:
        yield norm
    yield nn.ReLU()


def _pooled(side: int) -> int:
    """What is left of a side: pool by 2, valid 5x5, pool by 2."""
    if side < _SMALLEST_SIDE:
        raise RecipeError(f"geometry: LeNet-5 needs sides of {_SMALLEST_SIDE} pixels or more, got {side}")
    return (side // 2 - 4) // 2
