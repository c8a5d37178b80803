"""Few-shot heads on real digits: the accuracy curve, and a run to a published bundle."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from training import data
from training.evaluation.onnx_session import open_session, run
from training.few_shot.fit import FittedHead, accuracy_curve
from training.learning.learn import LearnContext, learn
from training.networks.backbones import IMAGENET_MEAN, IMAGENET_STD
from training.networks.heads import FittedHeadNetwork, empty_head
from training.networks.layer_features import build_extractor
from training.networks.torchvision_import import import_torchvision
from training.recipe import HeadRecipe, resolve
from training.report.metrics import Metrics
from training.run.job import Job, train_and_evaluate
from training.run.run_folder import RunFolder


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Digits 0, 1 and 2: every second one for training, the others for testing."""
    features, labels = load_digits(return_X_y=True)
    chosen = labels < 3
    features, labels = features[chosen].astype(np.float32), labels[chosen].astype(np.int64)
    return (features[::2], labels[::2]), (features[1::2], labels[1::2])


def test_the_curve_rises_with_the_examples_and_is_the_same_every_time() -> None:
    """A point for each possible number of examples, then all; each mean is within its interval."""
    train, test = digits()
    recipe = HeadRecipe(shots=(1, 5, 20, 1000), draws=20)
    points = accuracy_curve(recipe, train, test, seed=0)
    assert [point.per_label for point in points] == [1, 5, 20, None]
    assert [point.draws for point in points] == [20, 20, 20, 1]
    assert points[0].mean < points[1].mean < points[2].mean <= points[3].best
    for point in points:
        assert point.worst <= point.low <= point.mean <= point.high or point.draws == 1
        assert point.low <= point.mean <= point.high
    assert points == accuracy_curve(recipe, train, test, seed=0)
    assert points != accuracy_curve(recipe, train, test, seed=1)


def test_the_interval_has_the_share_of_the_test_images() -> None:
    """With a quarter of the test images it is wider, though the draws are the same."""
    train, (features, labels) = digits()
    recipe = HeadRecipe(shots=(5,), draws=20)
    points = [accuracy_curve(recipe, train, (features[::step], labels[::step]), seed=0)[0] for step in (1, 4)]
    assert [point.test_images for point in points] == [len(labels), len(labels[::4])]
    assert points[1].high - points[1].low > 1.5 * (points[0].high - points[0].low)


def test_the_mean_of_one_example_is_that_of_direct_fits() -> None:
    """Direct fits of the same draws give the same mean."""
    train, test = digits()
    recipe = HeadRecipe(kind="prototype", shots=(1,), draws=10)
    random = np.random.default_rng([3, 1])
    accuracies = []
    for _ in range(10):
        drawn = [random.choice(np.flatnonzero(train[1] == label), 1, replace=False)[0] for label in range(3)]
        nearest = np.linalg.norm(test[0][:, None] - train[0][drawn], axis=2).argmin(axis=1)
        accuracies.append((nearest == test[1]).mean())
    assert accuracy_curve(recipe, train, test, seed=3)[0].mean == pytest.approx(np.mean(accuracies))


@pytest.mark.parametrize("kind", ["linear-svm", "rbf-svm"])
def test_a_run_publishes_a_bundle_that_agrees_with_scikit_learn(kind: str, job: Job) -> None:
    """Random LeNet-5 features and a fitted head are proven; the curve is in the report."""
    overrides = ["method=few-shot", "head.layer=conv2", "head.pooling=none", "head.scaling=standard"]
    numbers = ["head.shots=[1, 10]", "head.draws=3", "gates.min_accuracy=0.9", "gates.max_ece=0.2"]
    recipe = resolve("lenet5-digits", [*overrides, *numbers, f"head.kind={kind}"])
    job = replace(job, model="few")
    summary = train_and_evaluate(recipe, job)
    assert summary.verdict == "published", summary.refusal
    bundle = job.repository.read("few", 1)
    assert {"report/few-shot.svg", "report/report.html"} <= set(bundle.manifest.files)
    metrics = Metrics.model_validate_json((bundle.folder / "report" / "metrics.json").read_text())
    assert [point.per_label for point in metrics.few_shot] == [1, 10, None]
    agreement = next(check for check in metrics.checks if check.name == "same labels as scikit-learn")
    assert agreement.passed
    assert agreement.detail == "359 of 359"
    assert metrics.few_shot[-1].mean == bundle.manifest.measured().accuracy.value
    assert json.loads((bundle.folder / "report" / "history.json").read_text()) == []
    assert bundle.manifest.calibration is not None
    assert 0.2 < bundle.manifest.calibration.temperature < 10
    probabilities, embedding = run(open_session(bundle.model_file), bundle.golden().images)
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-5
    assert embedding.shape[1] == bundle.manifest.embedding_size == 16 * 10 * 10


def test_the_thousand_outputs_of_a_backbone_are_features_too(job: Job) -> None:
    """head.layer=logits: the embedding is the output of the pretrained network, which has a twin."""
    torch.manual_seed(0)
    reference = import_torchvision("torchvision.models").squeezenet1_1().eval()
    weights = job.run_dir.with_suffix(".pth")
    torch.save(reference.state_dict(), weights)
    backbone = ("network.name=squeezenet1_1", f"network.weights={weights}", "head.layer=logits")
    shape = ("geometry.height=32", "geometry.width=32", "geometry.channels=3", "method=few-shot")
    fitting = ("head.kind=prototype", "head.shots=[1]", "head.draws=2")
    recipe = resolve("lenet5-fake", [*backbone, *shape, *fitting])
    dataset, _ = data.load(recipe.data, recipe.geometry, None)
    job.run_dir.mkdir()
    context = LearnContext(RunFolder(job.run_dir), job.cache, job.device, job.display, job.interrupts)
    network = learn(recipe, dataset, context).network
    images = torch.from_numpy(np.asarray(dataset.test.images[:9]))
    pixels = images.permute(0, 3, 1, 2) / 255  # (9, 3, H, W)
    mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        expected = reference((pixels - mean[:, None, None]) / deviation[:, None, None])
        logits, embedding = network(images)
    assert embedding.shape == (9, 1000)
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-4)

    random = recipe.network.model_copy(update={"weights": "random"})
    state = network.state_dict()
    twin = FittedHeadNetwork(
        build_extractor(random, recipe.head, recipe.geometry, 4, weights_follow=True),
        empty_head(recipe.head, 4, state),
        embedding_size=1000,
        classes=4,
    )
    twin.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(images)[0], logits)


def test_predictions_of_a_fit_are_scikit_learn_s_own() -> None:
    """Fifty examples are enough for high accuracy on three digits."""
    train, test = digits()
    fitted = FittedHead(HeadRecipe(), train[0][:50], train[1][:50])
    assert (fitted.predict(test[0]) == test[1]).mean() > 0.95
