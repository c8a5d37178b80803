"""Every picture of a small trained network: its parts, its words, and the errors of wrong options."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serving.bundle import MANIFEST_FILE, Bundle, Geometry
from serving.errors import LenserveError, UsageError
from training.data import load
from training.errors import RecipeError, TwinUnavailable
from training.evaluation.onnx_session import open_session, run
from training.explain.activations import draw_classes, draw_filter_inputs, draw_layer_inputs, filter_responses
from training.explain.examples import choose_examples
from training.explain.explain import explain, predictor
from training.explain.features import draw_features
from training.explain.filters import draw_filters, draw_layer_filters
from training.explain.grad_cam import default_layer, grad_cam
from training.explain.ideal_inputs import Ascent, class_score, ideal_inputs
from training.explain.onnx_layers import read_layers, run_layers, select_layer
from training.explain.outcomes import draw_confusion_matrix, draw_training_curves
from training.explain.picture import Picture, Tile, draw_grid, evenly, overlay, signed
from training.explain.predictions import draw_quadrants
from training.explain.torch_layers import images_at_once, layer_named, single_view
from training.explain.twin import read_twin
from training.explain.visualize import Wanted, visualize
from training.export.export import Classifier, export
from training.export.weights_file import WEIGHTS_FILE
from training.networks import build
from training.recipe import NetworkRecipe, Recipe
from training.report.predictions import predictions_of

DIGIT = Geometry(height=28, width=28, channels=1)
OBJECT = Geometry(height=32, width=32, channels=3)


def opened(picture: Picture) -> Image.Image:
    """The picture's PNG, after a check of its words."""
    assert picture.caption.endswith(".")
    assert picture.alt
    image = Image.open(io.BytesIO(picture.png))
    image.load()
    return image


def exported(recipe: NetworkRecipe, geometry: Geometry, path: Path) -> Path:
    """A file of a network with random weights."""
    export(Classifier(build(recipe, geometry, 10), 1.0).eval(), geometry, path / "model.onnx")
    return path / "model.onnx"


def test_a_report_has_all_pictures(digits_recipe: Recipe, digits_bundle: Bundle) -> None:
    """In this order, each with words; without the twin, those that need gradients are left out."""
    test = load(digits_recipe.data, digits_recipe.geometry, None)[0].test
    labels, geometry = digits_bundle.manifest.labels, digits_bundle.manifest.geometry
    twin, data = read_twin(digits_bundle).network, (test.images, test.labels)
    drawings = explain(digits_bundle.model_file, twin, labels, geometry, test=data)
    assert list(drawings) == [
        "occlusion-right",
        "occlusion-wrong",
        "activations-classes",
        "activations-filters",
        "features",
        "filters",
    ]
    trained = twin.parameter_count()
    pictures = {name: draw() for name, draw in drawings.items()}
    for name, picture in pictures.items():
        assert picture.name == name
        opened(picture)
        assert len(picture.png) < 1_000_000
    assert twin.parameter_count() == trained
    assert "Grad-CAM" in pictures["occlusion-right"].caption
    without = explain(digits_bundle.model_file, None, labels, geometry, test=data)
    assert set(drawings) - set(without) == {"activations-classes", "activations-filters"}
    assert "Grad-CAM" not in without["occlusion-right"]().caption


def test_images_of_the_data_can_be_left_out(digits_bundle: Bundle) -> None:
    """`report.images=none`: filters and ideal inputs show nothing of the data."""
    labels, geometry = digits_bundle.manifest.labels, digits_bundle.manifest.geometry
    network = read_twin(digits_bundle).network
    drawings = explain(digits_bundle.model_file, network, labels, geometry, test=None)
    assert list(drawings) == ["activations-classes", "activations-filters", "filters"]
    opened(drawings["activations-classes"]())


def test_layers_have_the_names_and_weights_of_torch(digits_bundle: Bundle) -> None:
    """All five layers; dense ones have the weights of the twin, convolutions those after batch norm."""
    layers = read_layers(digits_bundle.model_file)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "dense1", "dense2", "head"]
    assert [layer.weights.shape for layer in layers[:3]] == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400)]
    network = read_twin(digits_bundle).network
    np.testing.assert_array_equal(layers[4].weights, network.head.weight.detach().numpy())  # type: ignore[operator]


def test_feature_maps_are_those_of_the_twin(digits_bundle: Bundle) -> None:
    """After batch norm and activation, as a hook in torch sees them."""
    image = digits_bundle.golden().images[0]
    layers = read_layers(digits_bundle.model_file)
    conv1, conv2, dense1, *_ = run_layers(digits_bundle.model_file, layers, image)
    network = read_twin(digits_bundle).network
    seen: list[torch.Tensor] = []
    for name in ("relu1", "relu2", "relu3"):
        layer_named(network, name).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        network(torch.from_numpy(image)[None])
    for found, expected in zip((conv1, conv2, dense1), seen, strict=True):
        np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-4)


def test_filters_of_every_kind_of_layer(tmp_path: Path) -> None:
    """Colour for the first layer, kernels for later ones, blocks for 1 x 1 filters and dense layers."""
    layers = read_layers(exported(NetworkRecipe(name="allconv"), OBJECT, tmp_path))
    opened(draw_filters(layers, OBJECT))
    first, second = draw_layer_filters(layers[0], OBJECT), draw_layer_filters(layers[1], OBJECT)
    assert "grey is zero" in first.caption
    assert "a column for each of its 12 strongest inputs" in second.caption
    pixels = np.asarray(opened(first).convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.ptp(pixels, axis=1) > 40).any(), "in colour"
    for layer in layers[2:]:
        opened(draw_layer_filters(layer, OBJECT))
    assert {max(layer.weights.shape[2:], default=0) for layer in layers} == {0, 3, 4}


def test_views_share_their_layers(tmp_path: Path) -> None:
    """Test-time augmentation runs each layer several times; it is listed and run once."""
    path = exported(NetworkRecipe(views=6), DIGIT, tmp_path)
    layers = read_layers(path)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "dense1", "dense2", "head"]
    opened(draw_features(path, layers, np.zeros((28, 28, 1), np.uint8)))


def test_unknown_layers_are_named_with_similar_ones(digits_bundle: Bundle) -> None:
    """In the ONNX file and in torch; "trunk." may be left out."""
    layers = read_layers(digits_bundle.model_file)
    assert select_layer(layers, "trunk.conv1").name == "conv1"
    with pytest.raises(RecipeError, match="no layer 'conv9' with weights: similar names are conv"):
        select_layer(layers, "conv9")
    with pytest.raises(RecipeError, match="no layer 'conv9': similar names are conv"):
        draw_layer_inputs(read_twin(digits_bundle).network, DIGIT, "conv9", digits_bundle.golden().images)
    with pytest.raises(RecipeError, match="'relu1' is a ReLU, which has no filters"):
        draw_layer_inputs(read_twin(digits_bundle).network, DIGIT, "relu1", digits_bundle.golden().images)


def test_grad_cam_is_finer_than_the_last_pooling(digits_bundle: Bundle) -> None:
    """The layer before it, 10 x 10; maps are positive and have the size of the image."""
    network, images = read_twin(digits_bundle).network, digits_bundle.golden().images[:3]
    assert default_layer(network, images[0]) == "relu2"
    maps = grad_cam(network, images, [0, 1, 2], "relu2")
    assert maps.shape == (3, 28, 28)
    assert maps.min() >= 0
    assert maps.max() > 0
    with pytest.raises(RecipeError, match="layer 'dense1' has none"):
        grad_cam(network, images, [0, 1, 2], "dense1")


def test_ideal_inputs_raise_the_logit_of_their_class(digits_bundle: Bundle) -> None:
    """A few steps are enough for most digits, the same twice; gradients of weights are not kept."""
    network, geometry = read_twin(digits_bundle).network, digits_bundle.manifest.geometry
    with single_view(network) as logits:
        score = class_score(logits, range(10))
        images = ideal_inputs(network, geometry, score, 10, Ascent(60, (0.2,)))
        again = ideal_inputs(network, geometry, score, 10, Ascent(60, (0.2,)))
        predicted = logits(torch.from_numpy(images)).argmax(dim=1)
    np.testing.assert_array_equal(images, again)
    assert int((predicted == torch.arange(10)).sum()) >= 8
    assert images.shape == (10, 28, 28, 1)


def test_ideal_inputs_of_colour_networks() -> None:
    """Of untrained networks too: three channels, filters of the first and last convolution."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(name="alexnet", maps=(8, 8, 8, 8, 8), hidden=(16, 16)), OBJECT, 3).eval()
    real = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
    opened(draw_classes(network, OBJECT, ("a", "b", "c"), real))
    picture = draw_filter_inputs(network, OBJECT, real)
    assert "conv1, conv2, conv4, conv5" in picture.alt


def test_few_images_are_optimised_at_once_if_layers_are_large() -> None:
    """The tutorial's network for X-rays has 512 maps of 126 x 126 in its first layer: 32 MB each."""
    small, large = Geometry(height=28, width=28, channels=1), Geometry(height=128, width=128, channels=3)
    assert images_at_once(build(NetworkRecipe(name="lenet5"), small, 10), small) > 1000
    pneumonia = build(NetworkRecipe(name="pneumonia"), large, 2)
    assert 1 <= images_at_once(pneumonia, large) <= 8
    assert images_at_once(pneumonia, large, most_bytes=1) == 1


def test_examples_are_right_and_wrong_ones_of_each_class() -> None:
    """The first right one, the most confident mistake; of many classes those with the most mistakes."""
    truth = np.repeat(np.arange(12), 3)
    probabilities = np.full((36, 12), 0.01, np.float32)
    probabilities[np.arange(36), truth] = 0.8
    for index, confidence in ((33, 0.7), (34, 0.9), (0, 0.6)):  # mistakes: two of class 11, one of class 0
        probabilities[index] = 0.01
        probabilities[index, 5] = confidence
    images = np.zeros((36, 4, 4, 1), np.uint8)
    right, wrong = choose_examples(images, truth, probabilities)
    assert [each.truth for each in right] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]
    assert [(each.truth, each.predicted) for each in wrong] == [(0, 5), (11, 5)]
    assert wrong[1].probability == pytest.approx(0.9)
    assert wrong[1].describe([f"c{n}" for n in range(12)]) == "true c11\n→ c5 (90 %)"


def test_right_examples_of_other_classes_fill_the_picture() -> None:
    """One image of each of 30 classes: the ten classes with a mistake have no right example of their own."""
    truth = np.arange(30)
    probabilities = np.full((30, 30), 0.01, np.float32)
    probabilities[truth, np.where(truth < 10, 29, truth)] = 0.7
    right, wrong = choose_examples(np.zeros((30, 4, 4, 1), np.uint8), truth, probabilities)
    assert [each.truth for each in wrong] == list(range(10))
    assert [each.truth for each in right] == list(range(10, 20))


def test_silent_filters_are_not_shown() -> None:
    """A filter with large weights that no real image reaches is not among the strongest."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(name="conv2"), DIGIT, 10).eval()
    first = layer_named(network, "conv1")
    assert isinstance(first, torch.nn.Conv2d)
    with torch.no_grad():
        first.weight[3] = -9.0
    real = np.random.default_rng(0).integers(1, 255, (4, 28, 28, 1)).astype(np.uint8)
    responses = filter_responses(network, first, real)
    assert responses.shape == (first.out_channels,)
    assert responses[3] == 0
    assert responses.max() > 0
    picture = draw_layer_inputs(network, DIGIT, "conv1", real)
    assert "strongest filters that respond to real images" in picture.caption


def test_figures_without_their_files_are_refused(digits_bundle: Bundle, tmp_path: Path) -> None:
    """The message names the missing file, or the lack of epochs."""
    folder = tmp_path / "lenet5-digits" / "1"
    shutil.copytree(digits_bundle.folder, folder)
    bundle = replace(digits_bundle, folder=folder)
    (folder / "report" / "history.json").write_text("[]")
    with pytest.raises(UsageError, match="has no curves: it was not trained by epochs"):
        draw_training_curves(bundle)
    (folder / "report" / "metrics.json").unlink()
    with pytest.raises(UsageError, match=r"metrics\.json is missing, or of another version"):
        draw_confusion_matrix(bundle)


def test_grids_keep_every_pixel() -> None:
    """A small image is enlarged by whole pixels, without smoothing; a missing tile stays white."""
    board = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    png = draw_grid(
        [[Tile(board, "board"), None], [Tile(board), Tile(board, "price $5 $6")]], names=["a", "b"]
    )
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert pixels.shape[0] > 2 * 112
    first_row = pixels[8 + 7]  # through the first row of squares
    assert set(np.unique(first_row[20:])) <= {0, 255}
    assert evenly(range(100), 3) == [0, 50, 99]


def test_colours_of_maps() -> None:
    """Red is positive, blue negative, white or the pale image is zero."""
    red, blue, white = signed(np.array([[1.0, -1.0, 0.0]], np.float32))[0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert set(white) == {255}
    laid = overlay(np.zeros((1, 2, 1), np.uint8), np.array([[1.0, 0.0]], np.float32), 1.0)[0]
    assert laid[0, 0] > laid[0, 2]
    assert len(set(laid[1])) == 1


def test_every_picture_is_a_command(digits_bundle: Bundle, tmp_path: Path) -> None:
    """With and without an own image, which may be of any size and colour."""
    own = tmp_path / "own.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 80, 3)).astype(np.uint8)).save(own)
    for wanted in (
        Wanted("images"),
        Wanted("predictions"),
        Wanted("quadrants"),
        Wanted("mistakes"),
        Wanted("breakdown"),
        Wanted("confusion"),
        Wanted("curves"),
        Wanted("occlusion"),
        Wanted("occlusion", image=own, layer="conv1"),
        Wanted("activations", layer="head"),
        Wanted("filters"),
        Wanted("filters", layer="conv2"),
        Wanted("features"),
        Wanted("features", layer="conv1", image=own),
    ):
        opened(visualize(replace(wanted, bundle_dir=digits_bundle.folder)))


def test_wrong_options_are_one_clear_line(digits_bundle: Bundle, tmp_path: Path) -> None:
    """Each names the option, the value and what would be right."""
    text = tmp_path / "text.png"
    text.write_text("not an image")
    folder = digits_bundle.folder
    cases: list[tuple[Wanted, type[LenserveError], str]] = [
        (Wanted("filters"), UsageError, "filters needs a bundle"),
        (Wanted("kernels", folder), UsageError, "kernels takes no bundle"),
        (Wanted("filters", folder, image=text), UsageError, "--image has no effect on filters"),
        (Wanted("kernels", layer="conv1"), UsageError, "--layer has no effect on kernels"),
        (
            Wanted("features", folder, image=text),
            UsageError,
            r"text.png: the image cannot be decoded: .*12 bytes",
        ),
        (Wanted("features", folder, image=tmp_path / "no.png"), UsageError, "cannot be read: No such file"),
        (Wanted("filters", tmp_path), UsageError, "is not a bundle"),
    ]
    for wanted, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            visualize(wanted)
        assert "\n" not in str(caught.value)


def test_old_bundles_have_all_but_gradients(digits_bundle: Bundle, tmp_path: Path) -> None:
    """Without weights: occlusion without Grad-CAM and the reason, activations refused in one line."""
    folder = tmp_path / "lenet5-digits" / "1"
    shutil.copytree(digits_bundle.folder, folder)
    (folder / "report" / WEIGHTS_FILE).unlink()
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    del manifest["files"][f"report/{WEIGHTS_FILE}"]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    picture = visualize(Wanted("occlusion", folder))
    assert "Without Grad-CAM: gradients of lenet5-digits version 1 are not available" in picture.caption
    with pytest.raises(TwinUnavailable, match="is missing") as caught:
        visualize(Wanted("activations", folder))
    assert "\n" not in str(caught.value)


def test_quadrants_count_every_image() -> None:
    """Right or wrong, sure or unsure: numbers and mean losses; an empty quadrant is said to be empty."""
    probabilities = np.array([[0.95, 0.05], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]], np.float32)
    truth = np.array([0, 0, 0, 1])
    images = np.zeros((4, 8, 8, 1), np.uint8)
    predictions = predictions_of(probabilities, truth, ("cat", "dog"), [""] * 4)
    picture = draw_quadrants(images, predictions)
    opened(picture)
    assert picture.caption.startswith(
        "Of 4 test images 1 are right and sure (mean loss 0.051), 1 are right and unsure (mean loss 0.511), "
        "no image is wrong and sure, 2 are wrong and unsure (mean loss 1.001)."
    )


def test_predictor_runs_any_number_of_images(digits_bundle: Bundle) -> None:
    """In batches, with the probabilities of the session."""
    images = digits_bundle.golden().images
    expected, _ = run(open_session(digits_bundle.model_file), images)
    np.testing.assert_allclose(predictor(digits_bundle.model_file)(images), expected, atol=1e-6)
