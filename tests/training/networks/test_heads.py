"""Fitted heads as torch modules: scikit-learn's label for every digit, in torch and in ONNX."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits

from serving.bundle import Geometry
from training.errors import RecipeError
from training.evaluation.onnx_session import open_session, run
from training.export.export import Classifier, export
from training.few_shot.fit import FittedHead
from training.networks import build
from training.networks.heads import FittedHeadNetwork
from training.networks.layer_features import LayerFeatures
from training.recipe import HeadRecipe, NetworkRecipe

KINDS = ("linear-svm", "rbf-svm", "poly-svm", "logistic", "prototype")
GEOMETRY = Geometry(height=28, width=28, channels=1)


def digits(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features and labels, and other features, of real digits of the first classes."""
    features, labels = load_digits(return_X_y=True)
    chosen = labels < classes
    features, labels = features[chosen].astype(np.float32), labels[chosen].astype(np.int64)
    return features[::3], labels[::3], np.delete(features, np.s_[::3], axis=0)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scaling", ["none", "standard", "unit"])
@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_gives_scikit_learn_s_label_for_every_row(kind: str, scaling: str, classes: int) -> None:
    """Each kind of head, with each scaling, on digits outside the fit."""
    features, labels, others = digits(classes)
    recipe = HeadRecipe.model_validate({"kind": kind, "scaling": scaling, "regularisation": 0.5})
    fitted = FittedHead(recipe, features, labels)
    with torch.no_grad():
        logits = fitted.to_torch_module(features)(torch.from_numpy(others))
    assert logits.dtype == torch.float32
    assert logits.shape == (len(others), classes)
    np.testing.assert_array_equal(logits.argmax(dim=1).numpy(), fitted.predict(others))


@pytest.mark.parametrize("kind", KINDS)
def test_margins_are_near_one_so_that_a_temperature_can_be_fitted(kind: str) -> None:
    """The median margin on the training features is 1 for every kind of head."""
    features, labels, _ = digits(3)
    logits = FittedHead(HeadRecipe.model_validate({"kind": kind}), features, labels).to_torch_module(features)
    best = logits(torch.from_numpy(features)).topk(2, dim=1).values
    assert float((best[:, 0] - best[:, 1]).median()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_served_graph_agrees_with_scikit_learn(kind: str, tmp_path: Path) -> None:
    """Exported after a layer of LeNet-5, the ONNX graph gives the same labels."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(), GEOMETRY, 10).eval()
    extractor = LayerFeatures(network, "pool1", "mean")
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = random.integers(0, 60, (60, 28, 28, 1), dtype=np.uint8)
    images[labels == 1, :14] += 120
    images[labels == 2, :, :14] += 120
    with torch.no_grad():
        features = extractor(torch.from_numpy(images)).numpy()  # (60, 6)
    assert features.shape == (60, 6)
    fitted = FittedHead(HeadRecipe.model_validate({"kind": kind, "scaling": "standard"}), features, labels)
    served = FittedHeadNetwork(
        extractor, fitted.to_torch_module(features), embedding_size=6, classes=3
    ).eval()
    export(Classifier(served, 1.0), GEOMETRY, tmp_path / "model.onnx")
    probabilities, embedding = run(open_session(tmp_path / "model.onnx"), images)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), fitted.predict(features))
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.9
    np.testing.assert_allclose(embedding, features, atol=1e-5)
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = sum(np.prod(tensor.dims, dtype=int) for tensor in graph.initializer)
    assert stored < 60_000  # LeNet-5's dense layers come after the layer: they are not in the file


def test_features_of_any_layer_pooled_or_whole() -> None:
    """Maps are averaged or flattened; the embedding is the network's own; a wrong name is an error."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(), GEOMETRY, 10).eval()
    images = torch.randint(0, 256, (2, 28, 28, 1), dtype=torch.uint8)
    with torch.no_grad():
        assert LayerFeatures(network, "pool1", "mean")(images).shape == (2, 6)
        whole = LayerFeatures(network, "pool1", "none")(images)
        assert whole.shape == (2, 6 * 14 * 14)
        torch.testing.assert_close(LayerFeatures(network, None, "mean")(images), network(images)[1])
    with pytest.raises(RecipeError, match=r"no layer 'pool11': similar names are pool1"):
        LayerFeatures(network, "pool11", "mean")
