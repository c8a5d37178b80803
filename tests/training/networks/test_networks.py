"""Every network has the published number of parameters, and follows the recipe's settings."""

import pytest
import torch

from serving.bundle import Geometry
from training.errors import RecipeError
from training.networks import Network, build
from training.recipe import NetworkRecipe, resolve, shipped_names

DIGITS = Geometry(height=28, width=28, channels=1)
OBJECTS = Geometry(height=32, width=32, channels=3)
X_RAYS = Geometry(height=128, width=128, channels=3)


def pixels(geometry: Geometry, images: int = 2) -> torch.Tensor:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, *geometry.shape), dtype=torch.uint8, generator=generator)


def made(geometry: Geometry, classes: int = 10, **recipe: object) -> Network:
    """A network of this recipe, initialised from data, in evaluation mode."""
    torch.manual_seed(0)
    network = build(NetworkRecipe.model_validate(recipe), geometry, classes)
    network.initialise_from_data(lambda count: pixels(geometry, 20)[:count])
    return network.eval()


@pytest.mark.parametrize(
    ("recipe", "geometry", "classes", "parameters", "embedding"),
    [
        ({"name": "mlp"}, DIGITS, 10, 401_920 + 262_656 + 5_130, 512),
        ({"name": "mlp", "hidden": (32,), "dropout": 0.0}, OBJECTS, 10, 98_336 + 330, 32),
        ({"name": "conv2"}, DIGITS, 10, 832 + 51_264 + 401_536 + 1_290, 128),
        ({"name": "alexnet"}, OBJECTS, 10, 831_424 + 1_191_946, 1024),
        ({"name": "alexnet", "batch_norm": True}, OBJECTS, 10, 2_023_370 + 1_376, 1024),
        ({"name": "alexnet", "batch_norm": True, "residual": True}, OBJECTS, 10, 2_885_418, 1024),
        ({"name": "allconv"}, OBJECTS, 10, 1_413_178, 128),
        ({"name": "pneumonia"}, X_RAYS, 2, 1_563_072 + 1_329_921, 512),
        ({"name": "fast"}, OBJECTS, 10, 1_973_666, 256),
    ],
)
def test_parameters_are_counted_exactly(
    recipe: dict[str, object], geometry: Geometry, classes: int, parameters: int, embedding: int
) -> None:
    """The published counts, logits for each class, and the penultimate layer's width."""
    network = made(geometry, classes, **recipe)
    assert network.parameter_count() == parameters
    logits, features = network(pixels(geometry))
    assert (logits.shape, features.shape) == ((2, classes), (2, embedding))
    assert network.embedding_size == embedding


def test_shipped_best_networks_keep_their_budget() -> None:
    """mnist-best and fashion-mnist-best have at most 500,000 parameters."""
    for name in {"mnist-best", "fashion-mnist-best"} & set(shipped_names()):
        recipe = resolve(name)
        assert build(recipe.network, recipe.geometry, 10).parameter_count() <= 500_000


def test_batch_norm_of_alexnet_keeps_1376_statistics() -> None:
    """After each of the five convolutions: 688 maps, a mean and a variance each."""
    network = made(OBJECTS, name="alexnet", batch_norm=True)
    assert sum(value.numel() for name, value in network.named_buffers() if "running" in name) == 1_376


def test_allconv_has_no_pooling() -> None:
    """Neither a pooling layer nor a dense one below the head."""
    kinds = {type(layer).__name__ for layer in made(OBJECTS, name="allconv").trunk.modules()}
    assert not any("Pool" in kind or "Linear" in kind for kind in kinds)


@pytest.mark.parametrize("name", ["lenet5", "conv2", "mlp", "alexnet", "allconv", "fast"])
@pytest.mark.parametrize("activation", ["tanh", "leaky-relu"])
def test_every_network_uses_the_recipe_s_activation(name: str, activation: str) -> None:
    """The layers are named after it, and no default layers remain."""
    network = made(OBJECTS, name=name, activation=activation)
    layers = [layer for layer, _ in network.trunk.named_children()]
    assert any(layer.startswith(activation.replace("-", "_")) for layer in layers)
    assert not any(layer.startswith(("relu", "gelu")) for layer in layers)


def test_layer_sizes_and_regularisers_follow_the_recipe() -> None:
    """network.maps, hidden, kernel_size, dropout and batch_norm each change the layers they name."""
    network = made(
        DIGITS, name="conv2", maps=(3, 5), hidden=(7,), kernel_size=3, dropout=0.5, batch_norm=True
    )
    layers = dict(network.trunk.named_children())
    dense, dropout = layers["dense1"], layers["dropout1"]
    assert isinstance(dense, torch.nn.Linear)
    assert isinstance(dropout, torch.nn.Dropout)
    assert layers["conv2"].weight.shape == (5, 3, 3, 3)
    assert (dense.out_features, dropout.p) == (7, 0.5)
    assert {"norm1", "norm2", "norm3"} <= set(layers)


@pytest.mark.parametrize(
    ("recipe", "geometry", "classes", "said"),
    [
        ({"name": "conv2", "maps": (1, 2, 3)}, DIGITS, 10, "network.maps has 3 sizes, but the network has 2"),
        ({"name": "lenet5", "hidden": ()}, DIGITS, 10, "network.hidden has 0 sizes"),
        ({"name": "pneumonia"}, X_RAYS, 3, "is binary, but the data have 3 classes"),
        ({"name": "alexnet"}, DIGITS.model_copy(update={"width": 20}), 10, "nothing is left of 3x2 pixels"),
    ],
)
def test_what_cannot_be_built_is_the_recipes_fault(
    recipe: dict[str, object], geometry: Geometry, classes: int, said: str
) -> None:
    """The error names both numbers."""
    with pytest.raises(RecipeError) as caught:
        made(geometry, classes, **recipe)
    assert said in str(caught.value)


def test_one_sigmoid_output_is_a_softmax_over_two() -> None:
    """Softmax over (0, z) equals the sigmoid of z, so calibration and export need no second case."""
    network = made(X_RAYS, 2, name="pneumonia")
    with torch.no_grad():
        logits, embedding = network(pixels(X_RAYS))
        assert torch.allclose(logits.softmax(1)[:, 1], network.head(embedding).sigmoid()[:, 0])


def test_whitening_decorrelates_small_patches() -> None:
    """On the images that it was computed from, the filters' outputs have unit variance and no correlation."""
    network = build(NetworkRecipe(name="fast"), OBJECTS, 10)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((50, 3, 8, 8), generator=generator) * 255  # neighbours are alike, as in photographs
    images = torch.nn.functional.interpolate(coarse, 32, mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)
    network.initialise_from_data(lambda count: images[:count])
    filters = network.trunk.get_submodule("whitening1").weight
    assert isinstance(filters, torch.Tensor)
    with torch.no_grad():
        out = torch.conv2d(images.permute(0, 3, 1, 2) / 255, filters)[:, :12]  # (N, 12, 31, 31)
    covariance = torch.cov(out.permute(1, 0, 2, 3).reshape(12, -1))
    strongest = covariance[:3, :3]
    assert torch.allclose(strongest, torch.eye(3), atol=0.05)
    assert float((covariance - covariance.diag().diag()).abs().max()) < 0.01
    assert not filters.requires_grad


def test_views_are_averaged_in_evaluation_alone() -> None:
    """With two views the mirror image gets the same logits; training sees one view."""
    network = made(OBJECTS, name="fast", views=2, batch_norm=False)
    images = pixels(OBJECTS)
    with torch.no_grad():
        logits, embedding = network(images)
        assert torch.allclose(logits, network(images.flip(2))[0], atol=1e-5)
        assert torch.allclose(logits, network.logits(embedding))
        network.train()
        assert not torch.allclose(logits, network(images)[0], atol=1e-5)


def test_six_views_are_the_weighted_mean_of_moved_and_mirrored_images() -> None:
    """Half the weight is on the image and its mirror image, a quarter on each diagonal shift of both."""
    network = made(OBJECTS, name="fast", views=6)
    single = made(OBJECTS, name="fast")
    images = pixels(OBJECTS)
    edged = torch.nn.functional.pad(images.permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="reflect")
    expected = torch.zeros(2, 10)
    for start, weight in ((1, 0.5), (0, 0.25), (2, 0.25)):
        view = edged[:, :, start : start + 32, start : start + 32].permute(0, 2, 3, 1)
        for seen in (view, view.flip(2)):
            expected += weight / 2 * single(seen)[0].detach()
    assert torch.allclose(network(images)[0], expected, atol=1e-5)


def test_memory_format_changes_nothing_but_speed() -> None:
    """The logits are the same in both memory formats."""
    network = made(OBJECTS, name="alexnet", batch_norm=True)
    with torch.no_grad():
        plain = network(pixels(OBJECTS))[0]
        network.use_memory_format(torch.channels_last)
        filters = network.trunk.get_parameter("conv2.weight")
        assert filters.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(plain, network(pixels(OBJECTS))[0], atol=1e-5)
