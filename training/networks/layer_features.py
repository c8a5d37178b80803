"""Extracts the output of any named layer of a network, or its logits, as one vector per image."""

from typing import Any, Literal

from torch import Tensor, nn

from serving.bundle import Geometry
from training.networks import build
from training.networks.backbones import build_classifier, find_layer, global_average_pool
from training.networks.network import Network
from training.recipe import HeadRecipe, NetworkRecipe
from training.recipe.sections import EMBEDDING, LOGITS

Pooling = Literal["mean", "none"]


class LayerFeatures(nn.Module):
    """A frozen network up to a layer.

    In torch the later layers also run. The exporter drops them from the graph, because nothing depends on
    them.
    """

    def __init__(self, network: Network, layer: str | None, pooling: Pooling) -> None:
        super().__init__()
        self.network = network.eval()
        self.name = layer or EMBEDDING
        self.layer = None if layer in (None, LOGITS) else find_layer(network, layer)
        self.pooling = pooling

    def train(self, mode: bool = True) -> "LayerFeatures":  # noqa: ARG002, FBT001, FBT002 - torch's own signature
        """Stay in evaluation mode: the network is frozen."""
        return super().train(mode=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, C) uint8 -> (N, D) float32; the network's embedding or logits if no layer is named."""
        if self.layer is None:
            logits, embedding = self.network(images)  # (N, K), (N, D)
            features: Tensor = logits if self.name == LOGITS else embedding
            return features
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


def build_extractor(
    network: NetworkRecipe,
    head: HeadRecipe,
    geometry: Geometry,
    classes: int,
    *,
    weights_follow: bool = False,
) -> LayerFeatures:
    """Build the frozen layers that method few-shot fits its head on.

    Args:
        network: the network and its weights.
        head: head.layer names the layer. Its logits are those of ImageNet's 1,000 classes.
        geometry: the size and channels of the images.
        classes: number of labels.
        weights_follow: allow random weights for the logits, because the caller loads others.

    Raises:
        RecipeError: the network has no such layer, or cannot be built.
        WeightsError: the weights cannot be read, or do not fit the network.
    """
    if head.layer == LOGITS:
        whole = build_classifier(network, geometry, weights_follow=weights_follow)
        return LayerFeatures(whole, LOGITS, head.pooling)
    layer = None if head.layer == EMBEDDING else head.layer
    return LayerFeatures(build(network, geometry, classes), layer, head.pooling)


def _tensor(output: Any) -> Tensor:  # noqa: ANN401 - attention layers return a tuple
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
