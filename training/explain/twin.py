"""The torch twin of a published ONNX file: the same network in torch, for what needs gradients.

Rebuilt from the recipe and the weights beside the report, and compared with the golden examples.
"""

import json

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor

from serving.bundle import Bundle, read_golden
from training.errors import RecipeError, TwinUnavailable, WeightsError
from training.export.export import Classifier
from training.export.weights_file import WEIGHTS_FILE, read_weights_file
from training.networks import Network, build
from training.networks.backbones import RANDOM, build_classifier
from training.networks.heads import FittedHeadNetwork, empty_head
from training.networks.layer_features import build_extractor
from training.recipe import Recipe, recipe_from_settings
from training.report.metrics import METRICS_FILE

_REPORT = "report"


def read_twin(bundle: Bundle) -> Classifier:
    """Rebuild the torch network of a bundle, in evaluation mode.

    Raises:
        TwinUnavailable: the bundle has no weights, or the network computes other probabilities than the file.
    """
    try:
        recipe = read_recipe(bundle)
        state = read_weights_file(bundle.folder / _REPORT)
        network = _network(recipe, state, len(bundle.manifest.labels))
    except (RecipeError, WeightsError) as error:
        raise TwinUnavailable(f"{_beginning(bundle)}: {error}") from error
    try:
        load_model(network, bundle.folder / _REPORT / WEIGHTS_FILE)
    except RuntimeError as error:
        raise TwinUnavailable(
            f"{_beginning(bundle)}: {WEIGHTS_FILE} has tensors of other names or shapes than "
            f"{recipe.network.name}, the network of its recipe"
        ) from error
    calibration = bundle.manifest.calibration
    twin = Classifier(network.eval(), calibration.temperature if calibration else 1.0).eval()
    _compare(twin, bundle, recipe.gates.max_parity_gap)
    return twin


def read_recipe(bundle: Bundle) -> Recipe:
    """Read the recipe that made a bundle.

    Raises:
        RecipeError: report/metrics.json is missing, or its recipe is of another version of Lenserve.
    """
    path = bundle.folder / _REPORT / METRICS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} does not record the recipe") from error
    return recipe_from_settings(settings, str(path))


def _network(recipe: Recipe, state: dict[str, Tensor], classes: int) -> Network:
    shape_alone = recipe.network.model_copy(update={"weights": RANDOM})
    if recipe.method == "as-is":
        return build_classifier(shape_alone, recipe.geometry, weights_follow=True)
    if recipe.method == "train":
        return build(shape_alone, recipe.geometry, classes)
    extractor = build_extractor(shape_alone, recipe.head, recipe.geometry, classes, weights_follow=True)
    head = empty_head(recipe.head, classes, state)
    return FittedHeadNetwork(extractor, head, embedding_size=1, classes=classes)


def _compare(twin: Classifier, bundle: Bundle, max_gap: float) -> None:
    golden = read_golden(bundle.folder, bundle.manifest)
    with torch.no_grad():
        probabilities = twin(torch.from_numpy(golden.images))[0].numpy()  # (G, K)
    gap = golden.largest_difference(np.asarray(probabilities, np.float32))
    if not gap <= max_gap:
        raise TwinUnavailable(
            f"{_beginning(bundle)}: {WEIGHTS_FILE} gives other probabilities than the published file: they "
            f"differ by up to {gap:.2g} on the golden examples, the limit is {max_gap:.2g} "
            "(gates.max_parity_gap)"
        )


def _beginning(bundle: Bundle) -> str:
    return f"gradients of {bundle.model} version {bundle.version} are not available"
