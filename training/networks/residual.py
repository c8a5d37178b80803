"""A residual block (He et al. 2015, arXiv:1512.03385)."""

from torch import Tensor, nn

from training.networks.activations import activation


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut: (N, C, H, W) -> (N, maps, H, W).

    The shortcut is the identity, or a 1x1 convolution if the number of maps changes.
    """

    def __init__(self, channels: int, maps: int, activation_name: str) -> None:
        super().__init__()
        # No bias: batch norm would subtract it.
        self.conv1 = nn.Conv2d(channels, maps, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(maps)
        self.act1 = activation(activation_name)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(maps)
        self.shortcut = nn.Identity() if channels == maps else nn.Conv2d(channels, maps, 1, bias=False)
        self.act2 = activation(activation_name)

    def forward(self, planes: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, maps, H, W)."""
        inner = self.act1(self.norm1(self.conv1(planes)))  # (N, maps, H, W)
        inner = self.norm2(self.conv2(inner))  # (N, maps, H, W)
        outer: Tensor = self.act2(inner + self.shortcut(planes))  # (N, maps, H, W)
        return outer
