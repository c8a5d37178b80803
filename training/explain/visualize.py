"""One picture of a published version, as `lenserve-train visualize` draws it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from serving.bundle import Bundle, Geometry, ImageLimits, apply_geometry, decode_image
from serving.bundle.images import Pixels
from serving.errors import ImageError, UsageError
from training import data
from training.errors import DataError, TwinUnavailable
from training.evaluation.evaluate_bundle import data_recipe, load_test_split, locate
from training.explain.activations import draw_classes, draw_layer_inputs
from training.explain.examples import MAX_CLASSES, Example, choose_examples, predicted_examples
from training.explain.explain import predictor
from training.explain.features import draw_features, draw_layer_features
from training.explain.filters import draw_filters, draw_layer_filters
from training.explain.kernels import Window, draw_kernels
from training.explain.kinds import Kind
from training.explain.occlusion import default_patch
from training.explain.onnx_layers import read_layers, select_layer
from training.explain.outcomes import (
    draw_confusion_matrix,
    draw_error_breakdown,
    draw_images,
    draw_mistakes,
    draw_training_curves,
)
from training.explain.picture import Picture
from training.explain.predictions import draw_predictions, draw_quadrants
from training.explain.twin import read_twin
from training.explain.why import draw_why
from training.report.predictions import predictions_of

_OF_PREDICTIONS = {
    "predictions": draw_predictions,
    "quadrants": draw_quadrants,
    "mistakes": draw_mistakes,
}
_OF_REPORT = {
    "breakdown": draw_error_breakdown,
    "confusion": draw_confusion_matrix,
    "curves": draw_training_curves,
}
_WITH_LAYER = ("occlusion", "activations", "filters", "features")
_WITH_IMAGE = ("occlusion", "features", "kernels")
_SAMPLE = "flower.jpg"  # of scikit-learn
_KERNEL_SIDE = (
    132  # pixels; larger images are scaled down, so that a kernel of three pixels has a visible effect
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be drawn."""

    kind: Kind
    bundle_dir: Path | None = None  # <repository>/<model>/<version>
    layer: str | None = None
    image: Path | None = None
    source: str | None = None  # of the test split
    data_root: Path | None = None
    cache: Path | None = None
    window: Window = field(default_factory=Window)


def visualize(wanted: Wanted) -> Picture:
    """Draw one picture.

    Raises:
        UsageError: an option is missing, has no effect, or names a file that is not an image.
        RecipeError: the network has no such layer.
        TwinUnavailable: the picture needs gradients, and the bundle has no weights.
        BundleError: the bundle was changed or damaged since it was published.
    """
    _check(wanted)
    if wanted.kind == "kernels":
        return draw_kernels(_for_kernels(wanted.image), wanted.window)
    if wanted.bundle_dir is None:
        raise UsageError(f"{wanted.kind} needs a bundle: name <repository>/<model>/<version>")
    repository, model, version = locate(wanted.bundle_dir)
    return _draw(wanted, repository.read(model, version))


def _check(wanted: Wanted) -> None:
    for option, value, kinds in (
        ("--layer", wanted.layer, _WITH_LAYER),
        ("--image", wanted.image, _WITH_IMAGE),
    ):
        if value is not None and wanted.kind not in kinds:
            raise UsageError(f"{option} has no effect on {wanted.kind}, only on {', '.join(kinds)}")
    if wanted.kind == "kernels" and wanted.bundle_dir is not None:
        raise UsageError("kernels takes no bundle: name an image with --image")


def _draw(wanted: Wanted, bundle: Bundle) -> Picture:
    if wanted.kind in _OF_REPORT:
        return _OF_REPORT[wanted.kind](bundle)
    if wanted.kind in _OF_PREDICTIONS:
        return _predictions(wanted, bundle)
    draw = {
        "images": _training_images,
        "occlusion": _occlusion,
        "activations": _activations,
        "filters": _filters,
        "features": _features,
    }
    return draw[wanted.kind](wanted, bundle)


def _training_images(wanted: Wanted, bundle: Bundle) -> Picture:
    recipe = data_recipe(bundle, wanted.source)
    dataset = data.load_unchecked(recipe, bundle.manifest.geometry, wanted.data_root, wanted.cache)
    return draw_images(dataset.train, dataset.labels)


def _filters(wanted: Wanted, bundle: Bundle) -> Picture:
    layers, geometry = read_layers(bundle.model_file), bundle.manifest.geometry
    if wanted.layer is None:
        return draw_filters(layers, geometry)
    return draw_layer_filters(select_layer(layers, wanted.layer), geometry)


def _features(wanted: Wanted, bundle: Bundle) -> Picture:
    layers = read_layers(bundle.model_file)
    image = bundle.golden().images[0] if wanted.image is None else _for_network(wanted.image, bundle)
    if wanted.layer is None:
        return draw_features(bundle.model_file, layers, image)
    return draw_layer_features(bundle.model_file, select_layer(layers, wanted.layer), image)


def _activations(wanted: Wanted, bundle: Bundle) -> Picture:
    network, real = read_twin(bundle).network, bundle.golden().images
    if wanted.layer is None:
        return draw_classes(network, bundle.manifest.geometry, bundle.manifest.labels, real)
    return draw_layer_inputs(network, bundle.manifest.geometry, wanted.layer, real)


def _predictions(wanted: Wanted, bundle: Bundle) -> Picture:
    test = load_test_split(bundle, data_recipe(bundle, wanted.source), wanted.data_root, wanted.cache)
    probabilities = predictor(bundle.model_file)(np.asarray(test.images))
    names = [""] * len(test.truth)
    predictions = predictions_of(probabilities, test.truth, bundle.manifest.labels, names)
    return _OF_PREDICTIONS[wanted.kind](test.images, predictions)


def _occlusion(wanted: Wanted, bundle: Bundle) -> Picture:
    predict, golden = predictor(bundle.model_file), bundle.golden()
    if wanted.image is not None:
        image = _for_network(wanted.image, bundle)[None]  # (1, H, W, C)
        examples = predicted_examples(image, predict(image))
    else:
        examples = _test_examples(wanted, bundle)
    network, reason = None, ""
    try:
        network = read_twin(bundle).network
    except TwinUnavailable as error:
        if wanted.layer is not None:
            raise
        reason = f" Without Grad-CAM: {error}."
    patch = default_patch(golden.images)
    picture = draw_why(
        "occlusion",
        examples,
        bundle.manifest.labels,
        predict=predict,
        patch=patch,
        network=network,
        layer=wanted.layer,
    )
    return replace(picture, caption=picture.caption + reason)


def _test_examples(wanted: Wanted, bundle: Bundle) -> list[Example]:
    """Right and wrong examples of the test split, or golden examples if the data are not at hand."""
    try:
        recipe = data_recipe(bundle, wanted.source)
        test = load_test_split(bundle, recipe, wanted.data_root, wanted.cache)
    except DataError:
        if wanted.data_root is not None or wanted.source is not None:
            raise
        golden = bundle.golden()
        return predicted_examples(golden.images, golden.probabilities)[:MAX_CLASSES]
    probabilities = predictor(bundle.model_file)(np.asarray(test.images))
    right, wrong = choose_examples(test.images, test.truth, probabilities)
    return [*right, *wrong]


def _for_network(path: Path, bundle: Bundle) -> Pixels:
    """Read an image file in the network's geometry: (H, W, C)."""
    return apply_geometry(_read(path), bundle.manifest.geometry)


def _for_kernels(path: Path | None) -> Pixels:
    """Read an image file, or a photograph that ships with scikit-learn: (H, W, 1 or 3)."""
    if path is None:
        from sklearn.datasets import load_sample_image  # noqa: PLC0415 - takes a second, for one picture

        pixels = load_sample_image(_SAMPLE)
    else:
        pixels = _read(path)
    height, width = pixels.shape[:2]
    scale = min(1.0, _KERNEL_SIDE / max(height, width))
    channels: Literal[1, 3] = 1 if pixels.shape[2] < 3 else 3  # noqa: PLR2004 - grey, with or without alpha
    geometry = Geometry(
        height=max(1, round(scale * height)), width=max(1, round(scale * width)), channels=channels
    )
    return apply_geometry(np.ascontiguousarray(pixels), geometry)


def _read(path: Path) -> Pixels:
    try:
        return decode_image(path.read_bytes(), ImageLimits())
    except OSError as error:
        raise UsageError(f"--image {path} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise UsageError(f"--image {path}: {error}") from error
