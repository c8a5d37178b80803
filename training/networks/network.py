"""What every network is: uint8 pixels -> features -> logits, with the scaling inside."""

from abc import abstractmethod

from torch import Tensor, contiguous_format, float32, nn


class Network(nn.Module):
    """A classifier in two parts, so that the embedding between them can be published too.

    A class with its own forward, because training, proof and export must scale pixels by the same line.
    """

    def __init__(self, embedding_size: int, classes: int) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.head = nn.Linear(embedding_size, classes)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """The penultimate activations.

        Args:
            pixels: (N, C, H, W) float32, 0..1.

        Returns: (N, embedding_size) float32.
        """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify.

        Args:
            images: (N, H, W, C) uint8.

        Returns: logits (N, K) and embedding (N, embedding_size), float32.
        """
        # In the order (N, C, H, W) in memory too: kept as NHWC, batch norm takes twice as long on a CPU.
        planes = images.permute(0, 3, 1, 2).to(float32, memory_format=contiguous_format)
        pixels = planes / 255  # (N, C, H, W) float32, 0..1
        embedding = self.features(pixels)
        return self.head(embedding), embedding

    def parameter_count(self) -> int:
        """Trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
