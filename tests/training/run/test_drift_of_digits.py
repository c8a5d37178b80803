"""Drift by real images and a real network: the index tells changed images from others of the same kind."""

import numpy as np

from serving.bundle import Bundle
from serving.bundle.images import Pixels
from serving.metrics.recorder import Metrics
from training.data import load_unchecked
from training.evaluation.onnx_session import open_session, run
from training.recipe import Recipe

LARGE = 0.25


def _drift(bundle: Bundle, images: Pixels) -> dict[str, float]:
    """Return the index of labels and of confidence for images (N, H, W, C)."""
    metrics = Metrics()
    quality = metrics.quality(bundle.model, bundle.version, bundle.manifest.labels, bundle.manifest.reference)
    quality.record_answers(run(open_session(bundle.model_file), images)[0])
    served = {"model": bundle.model, "version": str(bundle.version)}
    found = {
        name: metrics.registry.get_sample_value(
            "lenserve_population_stability_index", {**served, "distribution": name}
        )
        for name in ("labels", "confidence")
    }
    return {name: value for name, value in found.items() if value is not None}


def test_changed_images_are_told_from_others_of_the_same_kind(
    digits_recipe: Recipe, digits_bundle: Bundle
) -> None:
    """Test images have no drift and training images little; moved, inverted and dark ones have much."""
    dataset = load_unchecked(digits_recipe.data, digits_recipe.geometry, None)
    test, train = (np.stack(list(split.images)) for split in (dataset.test, dataset.train))  # (N, H, W, C)
    assert _drift(digits_bundle, test) == {"labels": 0, "confidence": 0}
    assert max(_drift(digits_bundle, train).values()) < 0.1
    for changed in (np.roll(test, 5, axis=2), 255 - test, test // 2):
        assert max(_drift(digits_bundle, changed).values()) > LARGE
