"""The pneumonia tutorial's network for chest X-rays: 2,892,993 parameters at 128x128x3, one output."""

from torch import Tensor
from torch.nn import functional

from serving.bundle import Geometry
from training.errors import RecipeError
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (512, 256, 128, 64)
_HIDDEN = (256, 512, 1024, 512)
_POOL = 3  # pixels: 128 -> 126 -> 42 -> 40 -> 13 -> 13 -> 11 -> 3


class Pneumonia(Network):
    """Four convolutions from wide to narrow and four hidden dense layers, for two classes.

    As in the tutorial, there is no activation or pooling between the third and the fourth convolution.
    """

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        if classes != 2:  # noqa: PLR2004 - one sigmoid output is binary
            raise RecipeError(
                f"network pneumonia is binary, but the data have {classes} classes: choose another network"
            )
        first, second, third, fourth = layer_sizes("maps", recipe.maps, _MAPS)
        layers = SequentialBuilder(recipe, geometry)
        layers.conv(first, 3, same=False).norm().max_pool(_POOL).activation()
        layers.conv(second, 3, same=False).norm().max_pool(_POOL).activation()
        layers.conv(third, 3).norm()
        layers.conv(fourth, 3, same=False).norm().max_pool(_POOL).activation()
        layers.flatten()
        for units in layer_sizes("hidden", recipe.hidden, _HIDDEN):
            layers.dense(units).norm().activation().dropout(0.0)
        super().__init__(layers.size, classes=1, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 512); (N, 576) after flatten1 at 128x128

    def logits(self, embedding: Tensor) -> Tensor:
        """(N, 512) -> (N, 2): zero and the single output, so that softmax equals its sigmoid."""
        return functional.pad(self.head(embedding), (1, 0))
