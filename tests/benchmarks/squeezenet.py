"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360) with its ImageNet weights, to judge pixels by."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

WEIGHTS = Path("weights") / "squeezenet1_1_caffe-bea84200.pth"
SYNSETS = Path("weights") / "synset_words.txt"

# torchvision's normalisation, which the weights expect.
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)

BATCH = 32


class Fire(nn.Module):
    """Squeeze to a few channels, then expand by 1x1 and 3x3 beside each other."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) -> (B, 2 * expanded, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


class SqueezeNet(nn.Module):
    """The layers under torchvision's names, so that its weights fit."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    @classmethod
    def pretrained(cls, data_root: Path) -> "SqueezeNet":
        """Read the weights; every one must fit."""
        network = cls().eval()
        network.load_state_dict(torch.load(data_root / WEIGHTS, weights_only=True))
        return network

    @torch.inference_mode()
    def pooled(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and logits of images.

        Args:
            pixels: (N, 224, 224, 3) uint8, RGB.

        Returns: (N, 512) float32 pooled features, and (N, 1000) float32 logits.
        """
        features, logits = [], []
        for start in range(0, len(pixels), BATCH):
            images = torch.from_numpy(pixels[start : start + BATCH]).permute(0, 3, 1, 2) / 255  # (B, 3, H, W)
            maps = self.features((images - MEAN) / DEVIATION)  # (B, 512, 13, 13)
            features.append(maps.mean(dim=(2, 3)).numpy())
            logits.append(self.classifier(maps).mean(dim=(2, 3)).numpy())
        return np.concatenate(features), np.concatenate(logits)


def class_indices(data_root: Path) -> dict[str, int]:
    """ImageNet's synsets (n01440764, ...) and their indices."""
    lines = (data_root / SYNSETS).read_text(encoding="utf-8").splitlines()
    return {line.split()[0]: index for index, line in enumerate(lines)}
