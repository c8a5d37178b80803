"""torchvision's networks by name, in two parts: a trunk, which may be pretrained and frozen, and a head."""

import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from serving.bundle import Geometry, Pretrained
from training.errors import RecipeError, WeightsError
from training.networks.network import Network
from training.networks.torchvision_import import import_torchvision
from training.networks.weights import State, read_weights
from training.recipe import NetworkRecipe
from training.recipe.backbone_names import IMAGENET_CLASSES

# Of ImageNet's training images in RGB, 0..1: what torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RANDOM = "random"  # network.weights
ALL, HEAD = "all", "head"  # network.train_from: everything is trained, or nothing before the head

# Classifiers that only training uses; torchvision drops them from a network that is loaded to predict.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


class Backbone(Network):
    """A torchvision network whose parts can be frozen.

    Frozen parts stay in evaluation mode: the statistics of their batch norms are kept, and their dropout is
    off, while the rest is trained.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        *,
        embedding_size: int,
        classes: int,
        dropout: float = 0.0,
        views: int = 1,
    ) -> None:
        super().__init__(embedding_size, classes, views=views)
        self.memory_format = torch.channels_last  # convolutions take half the time
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self._frozen: list[nn.Module] = []
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) float32, 0..1 -> (N, embedding_size) float32; grey becomes three equal channels."""
        return global_average_pool(self.activations(pixels))

    def activations(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) float32, 0..1 -> (N, D), or (N, D, h, w) of a trunk that ends in maps."""
        activations: Tensor = self.trunk((pixels - self.mean) / self.std)
        return activations

    def logits(self, embedding: Tensor) -> Tensor:
        """(N, embedding_size) -> (N, K)."""
        logits: Tensor = self.head(self.dropout(embedding))
        return logits

    def freeze(self, train_from: str) -> None:
        """Train only what comes from a layer on; the layers are in the order in which they were made.

        Args:
            train_from: name of a layer of the trunk; `head` freezes the whole trunk, `all` nothing.

        Raises:
            RecipeError: there is no such layer; names the nearest.
        """
        self.requires_grad_(requires_grad=True)
        self._frozen = [] if train_from == ALL else list(_modules_before(self.trunk, train_from))
        for module in self._frozen:
            module.requires_grad_(requires_grad=False)
        if train_from not in (ALL, HEAD):
            for ancestor in _ancestors(self.trunk, train_from):
                for parameter in ancestor.parameters(recurse=False):
                    parameter.requires_grad = False
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: FBT001, FBT002 - torch's own signature
        """Switch to training mode all that is not frozen, or everything to evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def parameter_count(self) -> int:
        """All numbers, frozen ones too."""
        return sum(parameter.numel() for parameter in self.parameters())


class HeadOnly(Network):
    """The head of a backbone as a network of its own, whose images are the trunk's features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.embedding_size, 1)
        self.dropout = backbone.dropout
        self.head = backbone.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) float32 features -> logits (N, K) and the same features."""
        return self.head(self.dropout(images)), images


class ConvHeadBackbone(Backbone):
    """SqueezeNet as it was trained: its own head is a convolution over the last maps, before the pooling."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) uint8 -> logits (N, K) and embedding (N, embedding_size), float32."""
        pixels = images.permute(0, 3, 1, 2).float() / 255  # (N, C, H, W) float32, 0..1
        maps = self.activations(pixels)  # (N, D, h, w)
        return self.head(maps), global_average_pool(maps)


def build_backbone(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> Backbone:
    """A backbone with a fresh linear head, frozen as the recipe says.

    Raises:
        RecipeError: there is no layer network.train_from, or the geometry is too small.
        WeightsError: the weights cannot be read, or belong to another network.
    """
    model, pretrained = _model(recipe, geometry, heads_may_differ=True)
    trunk, _, size = _split_head(model)
    head = nn.Linear(size, classes)
    backbone = Backbone(
        trunk,
        head,
        embedding_size=size,
        classes=classes,
        dropout=recipe.dropout or 0.0,
        views=recipe.views,
    )
    backbone.pretrained = pretrained
    backbone.freeze(recipe.train_from)
    return _check_geometry(backbone, geometry, recipe.name)


def build_classifier(recipe: NetworkRecipe, geometry: Geometry) -> Backbone:
    """A backbone with its own head of 1,000 classes, as it was trained on ImageNet.

    Raises:
        WeightsError: there are no weights, they cannot be read, or belong to another network.
    """
    if recipe.weights == RANDOM:
        raise RecipeError("network.weights is random: without training there must be pretrained ones")
    model, pretrained = _model(recipe, geometry, heads_may_differ=False)
    trunk, head, size = _split_head(model)
    kind = Backbone if isinstance(head, nn.Linear) else ConvHeadBackbone
    backbone = kind(trunk, head, embedding_size=size, classes=IMAGENET_CLASSES)
    backbone.pretrained = pretrained
    return _check_geometry(backbone, geometry, recipe.name)


def find_layer(root: nn.Module, name: str) -> nn.Module:
    """A layer by its dotted name, with or without the leading `trunk.`.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    start: nn.Module = root.trunk if isinstance(root, Network) else root
    layers: dict[str, nn.Module] = {known: module for known, module in start.named_modules() if known}
    short = name.removeprefix("trunk.")
    if short not in layers:
        nearest = ", ".join(difflib.get_close_matches(short, layers, n=3, cutoff=0))
        raise RecipeError(f"there is no layer {name!r}: the nearest names are {nearest}")
    return layers[short]


def global_average_pool(activations: Tensor) -> Tensor:
    """(N, D, h, w) -> their means (N, D); (N, D) stays."""
    return activations.mean(dim=(2, 3)) if activations.ndim == 4 else activations  # noqa: PLR2004


def _model(
    recipe: NetworkRecipe, geometry: Geometry, *, heads_may_differ: bool
) -> tuple[nn.Module, Pretrained | None]:
    model: nn.Module = import_torchvision("torchvision.models").get_model(
        recipe.name, weights=None, **_options(recipe.name, geometry)
    )
    if recipe.weights == RANDOM:
        return model, None
    state, pretrained = read_weights(recipe.weights, recipe.name)
    _load(model, state, recipe.name, heads_may_differ=heads_may_differ)
    return model, pretrained


def _options(name: str, geometry: Geometry) -> dict[str, Any]:
    if name in ("inception_v3", "googlenet"):
        # Their weights were made for pixels of -1..1, to which torchvision's own flag turns normalised ones.
        return {"aux_logits": False, "transform_input": True, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": geometry.height}
    if name.startswith("maxvit_"):
        return {"input_size": (geometry.height, geometry.width)}
    return {}


def _load(model: nn.Module, state: State, name: str, *, heads_may_differ: bool) -> None:
    state = {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    own = model.state_dict()
    if heads_may_differ:
        head = f"{_head_name(model)}."
        state = {key: own[key] if key.startswith(head) else value for key, value in state.items()}
        state |= {key: value for key, value in own.items() if key.startswith(head)}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise WeightsError(
            f"the weights are not those of {name}: {len(missing)} of {len(own)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})"
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise WeightsError(
                f"the weights are not those of {name}: {key} has shape {list(state[key].shape)}, "
                f"expected {list(value.shape)}"
            )
    model.load_state_dict(state)


def _split_head(model: Any) -> tuple[nn.Module, nn.Module, int]:  # noqa: ANN401 - torchvision ships no types
    """Trunk, head and size of the embedding between them."""
    name = _head_name(model)
    head = model.get_submodule(name)
    if isinstance(head, nn.Conv2d):  # SqueezeNet
        trunk = nn.Sequential()
        trunk.add_module("features", model.features)
        return trunk, nn.Sequential(*model.classifier, nn.Flatten()), head.in_channels
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    return model, head, head.in_features


def _head_name(model: nn.Module) -> str:
    """The last layer with weights: in all of torchvision's classifiers it is the head."""
    names: list[str] = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return names[-1]


def _modules_before(trunk: nn.Module, layer: str) -> Iterator[nn.Module]:
    """All modules made before a layer, its own ancestors excepted."""
    if layer == HEAD:
        yield trunk
        return
    wanted = find_layer(trunk, layer)
    ancestors = set(_ancestors(trunk, layer))
    for module in trunk.modules():
        if module is wanted:
            return
        if module not in ancestors:
            yield module


def _ancestors(trunk: nn.Module, layer: str) -> Iterator[nn.Module]:
    """The trunk, and what else holds the layer, the layer itself not among it."""
    parts = layer.removeprefix("trunk.").split(".")
    for depth in range(len(parts)):
        yield trunk.get_submodule(".".join(parts[:depth]))


def _check_geometry(backbone: Backbone, geometry: Geometry, name: str) -> Backbone:
    """Filters in the order of memory that convolutions are fast in; proven to take the geometry."""
    backbone.use_memory_format(torch.channels_last)
    mode = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros((1, *geometry.shape), dtype=torch.uint8))
    except (RuntimeError, AssertionError) as error:
        size = f"{geometry.height}x{geometry.width}x{geometry.channels}"
        raise RecipeError(f"geometry: {name} cannot take images of {size}: {error}") from error
    return backbone.train(mode)
