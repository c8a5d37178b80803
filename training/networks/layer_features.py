"""Extracts the output of any named layer of a network as one vector per image."""

from typing import Any, Literal

from torch import Tensor, nn

from training.networks.backbones import find_layer, global_average_pool
from training.networks.network import Network

Pooling = Literal["mean", "none"]


class LayerFeatures(nn.Module):
    """A frozen network up to a layer.

    In torch the later layers also run. The exporter drops them from the graph, because nothing depends on
    them.
    """

    def __init__(self, network: Network, layer: str | None, pooling: Pooling) -> None:
        super().__init__()
        self.network = network.eval()
        self.name = layer or "embedding"
        self.layer = None if layer is None else find_layer(network, layer)
        self.pooling = pooling

    def train(self, mode: bool = True) -> "LayerFeatures":  # noqa: ARG002, FBT001, FBT002 - torch's own signature
        """Stay in evaluation mode: the network is frozen."""
        return super().train(mode=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, C) uint8 -> (N, D) float32; the network's embedding if no layer is named."""
        if self.layer is None:
            embedding: Tensor = self.network(images)[1]  # (N, D)
            return embedding
        seen: list[Tensor] = []
        handle = self.layer.register_forward_hook(
            lambda _module, _inputs, output: seen.append(_tensor(output))
        )
        try:
            self.network(images)
        finally:
            handle.remove()
        activations = seen[-1]  # (N, D), (N, D, h, w), or (N, tokens, D) from a transformer
        return (global_average_pool(activations) if self.pooling == "mean" else activations).flatten(
            start_dim=1
        )


def _tensor(output: Any) -> Tensor:  # noqa: ANN401 - attention layers return a tuple
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
