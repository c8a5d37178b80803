"""Backbones: names, freezing, weights from files, and export."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from serving.bundle import Geometry
from training.errors import RecipeError, WeightsError
from training.evaluation.onnx_session import open_session
from training.evaluation.parity import check_parity
from training.export.export import Classifier, export
from training.networks import build
from training.networks.backbones import Backbone, build_classifier
from training.networks.torchvision_import import import_torchvision
from training.networks.weights import doubt, read_weights
from training.recipe import NetworkRecipe
from training.recipe.backbone_names import BACKBONES

GEOMETRY = Geometry(height=64, width=64, channels=3)
TOO_LARGE_FOR_ONE_FILE = {"regnet_y_128gf", "vit_h_14"}

# A few families that export in seconds; LENSERVE_EVERY_BACKBONE=1 takes all, in an hour and 20 GB of memory.
SAMPLE = ("squeezenet1_1", "resnet18", "mobilenet_v3_small", "vgg11")
EXPORTED = BACKBONES if os.environ.get("LENSERVE_EVERY_BACKBONE") else SAMPLE


def network(**options: object) -> Backbone:
    """A small backbone for 3 classes."""
    torch.manual_seed(0)
    built = build(NetworkRecipe.model_validate({"name": "squeezenet1_1", **options}), GEOMETRY, 3)
    assert isinstance(built, Backbone)
    return built


def noise(count: int, geometry: Geometry = GEOMETRY) -> torch.Tensor:
    """(count, H, W, C) uint8."""
    return torch.randint(0, 256, (count, *geometry.shape), dtype=torch.uint8)


def test_the_names_are_torchvision_s() -> None:
    """All classifiers of torchvision, except two without ONNX export and one whose name we use."""
    models = import_torchvision("torchvision.models")
    assert set(BACKBONES) == set(models.list_models(module=models)) - TOO_LARGE_FOR_ONE_FILE - {"alexnet"}


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.timeout(900)
def test_a_backbone_exports_and_agrees_with_torch(name: str, tmp_path: Path) -> None:
    """With a new head, the ONNX file gives torch's labels, probabilities and embedding."""
    side = {"inception_v3": 96, "maxvit_t": 224}.get(name, 64)
    geometry = Geometry(height=side, width=side, channels=3)
    torch.manual_seed(0)
    built = build(NetworkRecipe(name=name), geometry, 5).train()
    with torch.no_grad():
        built(noise(4, geometry))  # statistics that are not the initial ones
    classifier = Classifier(built, temperature=1.3).eval()
    export(classifier, geometry, tmp_path / "model.onnx")
    checks = check_parity(
        classifier, open_session(tmp_path / "model.onnx"), noise(9, geometry).numpy(), max_gap=1e-4
    )
    assert all(check.passed for check in checks), checks


def test_parameter_counts_with_a_new_head() -> None:
    """The published count, less the old head, plus the new one."""
    assert network().parameter_count() == 1_235_496 - (512 * 1000 + 1000) + (512 * 3 + 3)
    assert network(name="resnet18").parameter_count() == 11_689_512 - (512 * 1000 + 1000) + (512 * 3 + 3)


def test_grey_images_are_taken_for_three_equal_channels() -> None:
    """A grey geometry gives the same logits as three equal channels."""
    torch.manual_seed(0)
    grey = build(NetworkRecipe(name="squeezenet1_1"), GEOMETRY.model_copy(update={"channels": 1}), 3).eval()
    images = noise(2)[..., :1]
    with torch.no_grad():
        torch.testing.assert_close(grey(images)[0], grey(images.expand(-1, -1, -1, 3))[0])


def test_views_are_averaged_by_a_backbone_too() -> None:
    """With two views the mirror image gets the same logits, with one view different ones."""
    images = noise(2)
    with torch.no_grad():
        for views, alike in ((1, False), (2, True)):
            backbone = network(views=views).eval()
            same = torch.allclose(backbone(images)[0], backbone(images.flip(2))[0], atol=1e-5)
            assert same is alike


@pytest.mark.parametrize(
    ("train_from", "frozen"),
    [
        ("all", set()),
        ("features.11", {f"features.{number}" for number in (0, 3, 4, 6, 7, 9, 10)}),
        ("trunk.features.11", {f"features.{number}" for number in (0, 3, 4, 6, 7, 9, 10)}),
        ("head", {f"features.{number}" for number in (0, 3, 4, 6, 7, 9, 10, 11, 12)}),
    ],
)
def test_training_starts_at_the_named_layer(train_from: str, frozen: set[str]) -> None:
    """Layers before it have no gradients; later ones and the head have."""
    built = network(train_from=train_from)
    still = {
        ".".join(name.split(".")[1:3])
        for name, parameter in built.trunk.named_parameters(prefix="trunk")
        if not parameter.requires_grad
    }
    assert still == frozen
    assert all(parameter.requires_grad for parameter in built.head.parameters())


def test_an_unknown_layer_names_the_nearest() -> None:
    """A misspelt layer is a RecipeError that suggests similar names."""
    with pytest.raises(
        RecipeError, match=r"the network has no layer 'feature.12': similar names are features\.12"
    ):
        network(train_from="feature.12")


def test_statistics_of_frozen_batch_norms_are_kept() -> None:
    """Only statistics after the layer change in training mode, and no frozen weight changes."""
    built = network(name="resnet18", train_from="layer4").train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in built.parameters() if p.requires_grad), lr=0.1)
    loss = nn.functional.cross_entropy(built(noise(4))[0], torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()
    changed = {name for name, value in built.state_dict().items() if not torch.equal(value, before[name])}
    assert "trunk.layer4.0.bn1.running_mean" in changed
    assert "trunk.layer4.1.conv2.weight" in changed
    assert not [name for name in changed if not name.startswith(("trunk.layer4.", "head."))]


def test_weights_come_from_files_of_both_kinds(tmp_path: Path) -> None:
    """torch.save and safetensors, plain, nested or wrapped by data parallelism: the same trunk and digest."""
    state = import_torchvision("torchvision.models").squeezenet1_1().state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "nested.pth"
    )
    plain = network(weights=str(tmp_path / "plain.safetensors"))
    nested = network(weights=str(tmp_path / "nested.pth"))
    assert torch.equal(
        plain.trunk.get_parameter("features.12.squeeze.weight"), state["features.12.squeeze.weight"]
    )
    for name, value in plain.trunk.state_dict().items():
        assert torch.equal(value, nested.trunk.state_dict()[name])
    assert plain.pretrained is not None
    assert (plain.pretrained.network, plain.pretrained.file) == ("squeezenet1_1", "plain.safetensors")


def test_a_fine_tuned_file_with_another_head_gives_its_trunk(tmp_path: Path) -> None:
    """Weights for 7 classes fit a network of 3, since its head is new."""
    state = import_torchvision("torchvision.models").squeezenet1_1(num_classes=7).state_dict()
    torch.save(state, tmp_path / "seven.pth")
    built = network(weights=str(tmp_path / "seven.pth"))
    assert torch.equal(built.trunk.get_parameter("features.0.weight"), state["features.0.weight"])


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle ran",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (_Hostile(), "cannot be read"),
        ([1, 2], "contain list, not a state dict"),
        ({"epoch": 3}, "contain values that are not tensors: epoch"),
        ({"a": torch.zeros(1)}, "are missing (features.0.bias"),
    ],
)
def test_wrong_weights_are_refused(
    content: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file, a pickle with code, other content, and another network's weights."""
    if content is not None:
        torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError) as refused:
        network(weights=str(tmp_path / "weights.pth"))
    assert said in str(refused.value)
    assert "a pickle ran" not in capsys.readouterr().out


def test_an_unchanged_network_gives_torchvisions_logits(tmp_path: Path) -> None:
    """With their own heads, SqueezeNet and a network with a linear head give torchvision's logits."""
    for name in ("squeezenet1_1", "mobilenet_v3_small"):
        torch.manual_seed(0)
        reference = import_torchvision("torchvision.models").get_model(name).eval()
        torch.save(reference.state_dict(), tmp_path / f"{name}.pth")
        recipe = NetworkRecipe(name=name, weights=str(tmp_path / f"{name}.pth"))
        built = build_classifier(recipe, GEOMETRY).eval()
        images = noise(3)
        pixels = images.permute(0, 3, 1, 2).float() / 255  # (N, C, H, W)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            expected = reference((pixels - mean[:, None, None]) / deviation[:, None, None])
            logits, embedding = built(images)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        assert embedding.shape == (3, built.embedding_size)
        assert np.isfinite(embedding.numpy()).all()


def test_an_unchanged_network_needs_weights() -> None:
    """Method as-is with random weights is an error."""
    with pytest.raises(RecipeError, match=r"network\.weights=random needs training"):
        build_classifier(NetworkRecipe(name="squeezenet1_1"), GEOMETRY)


def test_a_geometry_that_is_too_small_is_the_recipe_s_fault() -> None:
    """The error names the network and the image size."""
    with pytest.raises(RecipeError, match=r"squeezenet1_1 does not accept images of 8x8x3"):
        build(NetworkRecipe(name="squeezenet1_1"), Geometry(height=8, width=8, channels=3), 3)


def test_a_file_in_torchs_cache_that_is_not_what_its_name_says_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound one of another origin is a warning, a damaged one an error that says how to renew it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    place = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    place.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, place)
    _, pretrained = read_weights("torchvision", "squeezenet1_1")
    warning = doubt(pretrained)
    assert warning is not None
    assert f"{place.name} are damaged, or others than their name says: its SHA-256 begins with" in warning
    true_name = f"mine-{pretrained.sha256[:8]}.pth"
    assert doubt(pretrained.model_copy(update={"file": true_name})) is None
    assert doubt(pretrained.model_copy(update={"file": "mine.pth"})) is None
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"cannot be read: .* delete the file, and it is downloaded again"):
        read_weights("torchvision", "squeezenet1_1")


def test_weights_that_cannot_be_downloaded_name_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the message has the address, where to put the file, and the setting for another one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsError) as refusal:
        network(weights="torchvision")
    place = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    assert "weights could not be downloaded: https://download.pytorch.org/models/squeezenet1_1" in str(
        refusal.value
    )
    assert f"put the file at {place}, or" in str(refusal.value)
    assert "--set network.weights=FILE" in str(refusal.value)
