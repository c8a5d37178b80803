"""All pictures that explain a network, for its report."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.data.labels import Labels
from training.data.storage.disk_images import Images
from training.evaluation.onnx_session import open_session, run
from training.explain.activations import draw_classes, draw_filter_inputs
from training.explain.examples import Floats, choose_examples
from training.explain.features import draw_features
from training.explain.filters import draw_filters
from training.explain.occlusion import Predict, default_patch
from training.explain.onnx_layers import read_layers
from training.explain.picture import Picture
from training.explain.torch_layers import convolutions
from training.explain.why import draw_why
from training.networks.network import Network


def explain(
    model_file: Path,
    network: Network | None,
    labels: tuple[str, ...],
    geometry: Geometry,
    *,
    test: tuple[Images, Labels] | None,
    probabilities: Floats | None = None,
) -> Mapping[str, Callable[[], Picture]]:
    """Prepare all pictures: name -> a function that draws it.

    Args:
        model_file: the published ONNX file.
        network: the same network in torch, on the CPU; None leaves out what needs gradients.
        labels: K.
        geometry: of the images.
        test: images, (N, H, W, C), and their true labels, (N,); None leaves out what shows images.
        probabilities: (N, K) of these images, if they are known.
    """
    drawings: dict[str, Callable[[], Picture]] = {}
    layers = read_layers(model_file)
    if test is not None:
        images, truth = test
        predict = predictor(model_file)
        if probabilities is None:
            probabilities = predict(np.asarray(images))
        right, wrong = choose_examples(images, truth, probabilities)
        patch = default_patch(images)
        for name, examples in (("occlusion-right", right), ("occlusion-wrong", wrong)):
            if examples:
                drawings[name] = partial(
                    draw_why, name, examples, labels, predict=predict, patch=patch, network=network
                )
    if network is not None:
        real = None if test is None else test[0]
        drawings["activations-classes"] = partial(draw_classes, network.eval(), geometry, labels, real)
        if convolutions(network):
            drawings["activations-filters"] = partial(draw_filter_inputs, network.eval(), geometry, real)
    if layers and test is not None:
        clear = 0 if probabilities is None else int(_rightness(probabilities, test[1]).argmax())
        drawings["features"] = partial(draw_features, model_file, layers, np.asarray(test[0][clear]))
    if layers:
        drawings["filters"] = partial(draw_filters, layers, geometry)
    return drawings


def _rightness(probabilities: Floats, truth: Labels) -> Floats:
    """(N,): the probability of the true label."""
    return np.asarray(probabilities[np.arange(len(truth)), truth], np.float32)


def predictor(model_file: Path) -> Predict:
    """Run a published file: (N, H, W, C) uint8 -> probabilities (N, K)."""
    return partial(_probabilities, open_session(model_file))


def _probabilities(session: Any, images: Pixels) -> Floats:  # noqa: ANN401 - ONNX Runtime ships no types
    return np.asarray(run(session, images)[0])
