"""torchvision's networks as backbones: a trunk, which may be pretrained and frozen, and a head."""

import difflib
from collections import OrderedDict
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

# Mean and deviation of ImageNet's training images, RGB, 0..1, as used to train torchvision's weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RANDOM = "random"  # network.weights
ALL, HEAD = "all", "head"  # network.train_from: train everything, or only the head

# Auxiliary classifiers, used only in training.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


class Backbone(Network):
    """A torchvision network whose first layers can be frozen.

    Frozen layers stay in evaluation mode while the rest is trained: their batch norm statistics do not
    change, and their dropout is off.
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
        self.memory_format = torch.channels_last  # halves the time of convolutions
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self._frozen: list[nn.Module] = []
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) float32, 0..1 -> (N, embedding_size) float32; a grey channel is broadcast to three."""
        return global_average_pool(self.activations(pixels))

    def activations(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) float32, 0..1 -> (N, D), or (N, D, h, w) if the trunk ends in feature maps."""
        activations: Tensor = self.trunk((pixels - self.mean) / self.std)
        return activations

    def logits(self, embedding: Tensor) -> Tensor:
        """(N, embedding_size) -> (N, K)."""
        logits: Tensor = self.head(self.dropout(embedding))
        return logits

    def freeze(self, train_from: str) -> None:
        """Freeze all layers before one, in the order of their definition.

        Args:
            train_from: first trained layer of the trunk; "head" freezes the whole trunk, "all" nothing.

        Raises:
            RecipeError: the trunk has no such layer.
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
        """Set the mode of all layers except the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def parameter_count(self) -> int:
        """Count all parameters, including frozen ones."""
        return sum(parameter.numel() for parameter in self.parameters())


class HeadOnly(Network):
    """The head of a backbone as a separate network, whose images are the trunk's features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.embedding_size, 1)
        self.dropout = backbone.dropout
        self.head = backbone.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) float32 features -> logits (N, K), and the features unchanged."""
        return self.head(self.dropout(images)), images


class ConvHeadBackbone(Backbone):
    """A pretrained SqueezeNet with its original head, a convolution before the global pooling."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) uint8 -> logits (N, K) and embedding (N, embedding_size), float32."""
        pixels = images.permute(0, 3, 1, 2).float() / 255  # (N, C, H, W) float32, 0..1
        maps = self.activations(pixels)  # (N, D, h, w)
        return self.head(maps), global_average_pool(maps)


def build_backbone(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> Backbone:
    """Build a backbone with a new head, frozen up to network.train_from.

    Raises:
        RecipeError: the layer network.train_from does not exist, or the geometry does not fit the network.
        WeightsError: the weights cannot be read, or do not fit the network.
    """
    model, pretrained = _model(recipe, geometry, heads_may_differ=True)
    trunk, _, size = _split_head(model)
    head = _new_head(recipe, size, classes)
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


def build_classifier(recipe: NetworkRecipe, geometry: Geometry, *, weights_follow: bool = False) -> Backbone:
    """Build a pretrained network with its original head for ImageNet's 1,000 classes.

    Args:
        recipe: the network and its weights.
        geometry: the size and channels of its images.
        weights_follow: allow random weights, because the caller loads others.

    Raises:
        RecipeError: network.weights is "random", or the geometry does not fit the network.
        WeightsError: the weights cannot be read, or do not fit the network.
    """
    if recipe.weights == RANDOM and not weights_follow:
        raise RecipeError("network.weights=random needs training: set pretrained weights, or another method")
    model, pretrained = _model(recipe, geometry, heads_may_differ=False)
    trunk, head, size = _split_head(model)
    kind = Backbone if isinstance(head, nn.Linear) else ConvHeadBackbone
    backbone = kind(trunk, head, embedding_size=size, classes=IMAGENET_CLASSES)
    backbone.pretrained = pretrained
    return _check_geometry(backbone, geometry, recipe.name)


def find_layer(root: nn.Module, name: str) -> nn.Module:
    """Find a layer by its dotted name, with or without the prefix "trunk.".

    Raises:
        RecipeError: the layer does not exist; the message suggests similar names.
    """
    if isinstance(root, Network) and name.startswith("head."):
        root, name = root.head, name.removeprefix("head.")
    start: nn.Module = root.trunk if isinstance(root, Network) else root
    layers: dict[str, nn.Module] = {known: module for known, module in start.named_modules() if known}
    short = name.removeprefix("trunk.")
    if short not in layers:
        nearest = ", ".join(difflib.get_close_matches(short, layers, n=3, cutoff=0))
        raise RecipeError(f"the network has no layer {name!r}: similar names are {nearest}")
    return layers[short]


def global_average_pool(activations: Tensor) -> Tensor:
    """Average over positions: (N, D, h, w) -> (N, D). Other shapes are returned unchanged."""
    return activations.mean(dim=(2, 3)) if activations.ndim == 4 else activations  # noqa: PLR2004


def _new_head(recipe: NetworkRecipe, size: int, classes: int) -> nn.Module:
    """A linear layer, after as many hidden dense layers as network.head_hidden has sizes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, units in enumerate(recipe.head_hidden, start=1):
        layers[f"dense{number}"] = nn.Linear(size, units)
        layers[f"relu{number}"] = nn.ReLU()
        if recipe.dropout:
            layers[f"dropout{number}"] = nn.Dropout(recipe.dropout)
        size = units
    output = nn.Linear(size, classes)
    return nn.Sequential(OrderedDict([*layers.items(), ("output", output)])) if layers else output


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
        # These weights expect pixels in -1..1; transform_input converts from the normalisation above.
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
            f"the weights do not fit {name}: {len(missing)} of {len(own)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})"
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise WeightsError(
                f"the weights do not fit {name}: {key} has shape {list(state[key].shape)}, "
                f"expected {list(value.shape)}"
            )
    model.load_state_dict(state)


def _split_head(model: Any) -> tuple[nn.Module, nn.Module, int]:  # noqa: ANN401 - torchvision ships no types
    """Split a network into trunk and head; also return the size of the embedding between them."""
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
    """Name the last layer with weights, which is the head in all of torchvision's classifiers."""
    names: list[str] = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return names[-1]


def _modules_before(trunk: nn.Module, layer: str) -> Iterator[nn.Module]:
    """Yield all modules defined before a layer, except those that contain it."""
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
    """Yield the modules that contain a layer, from the trunk down."""
    parts = layer.removeprefix("trunk.").split(".")
    for depth in range(len(parts)):
        yield trunk.get_submodule(".".join(parts[:depth]))


def _check_geometry(backbone: Backbone, geometry: Geometry, name: str) -> Backbone:
    """Set the memory format, and check that a forward pass with an image of this geometry works."""
    backbone.use_memory_format(torch.channels_last)
    mode = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros((1, *geometry.shape), dtype=torch.uint8))
    except (RuntimeError, AssertionError) as error:
        size = f"{geometry.height}x{geometry.width}x{geometry.channels}"
        raise RecipeError(
            f"geometry: {name} does not accept images of {size}: use larger or square ones "
            "(geometry.height, geometry.width)"
        ) from error
    return backbone.train(mode)
