"""The torch twin of a bundle: equal to its ONNX file, or refused with one clear line."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.bundle import Bundle, read_golden
from tests.training.fake_recipe import FakeRecipe
from training.errors import TwinUnavailable
from training.explain.twin import read_twin
from training.export import weights_file
from training.export.weights_file import WEIGHTS_FILE, write_weights
from training.run.job import Job, train_and_evaluate


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle's files in another folder, to be changed there."""
    shutil.copytree(bundle.folder, folder / "1")
    return replace(bundle, folder=folder / "1")


def test_the_twin_has_the_probabilities_of_the_file(digits_bundle: Bundle) -> None:
    """On every golden example, which ONNX Runtime computed."""
    golden = read_golden(digits_bundle.folder, digits_bundle.manifest)
    with torch.no_grad():
        probabilities = read_twin(digits_bundle)(torch.from_numpy(golden.images))[0].numpy()
    np.testing.assert_allclose(probabilities, golden.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("head.kind=logistic", "head.scaling=standard"),
        ("head.kind=rbf-svm",),
        ("head.kind=poly-svm", "data.fake_classes=2"),
        ("head.kind=prototype", "head.scaling=unit", "head.layer=pool2"),
    ],
)
def test_fitted_heads_have_a_twin_too(fake_recipe: FakeRecipe, job: Job, overrides: tuple[str, ...]) -> None:
    """The numbers that scikit-learn fitted are kept with the weights, those that are not tensors too."""
    recipe = fake_recipe(
        "method=few-shot",
        "head.draws=2",
        "head.shots=[1]",
        "gates.min_accuracy=0",
        "gates.max_ece=1",
        "gates.min_skill=-1",
        "gates.allow_zero_recall=true",
        "variants.precisions=[]",
        *overrides,
    )
    assert train_and_evaluate(recipe, job).verdict == "published"
    read_twin(job.repository.read("fake", 1))  # compares it with the golden examples


def test_a_bundle_without_weights_says_so(digits_bundle: Bundle, tmp_path: Path) -> None:
    """Bundles of earlier versions have none."""
    bundle = copy_of(digits_bundle, tmp_path)
    (bundle.folder / "report" / WEIGHTS_FILE).unlink()
    with pytest.raises(
        TwinUnavailable, match=r"^gradients of lenet5-digits version 1 are not available: .* is missing"
    ) as caught:
        read_twin(bundle)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(digits_bundle: Bundle, tmp_path: Path) -> None:
    """Other values, other shapes, and a damaged file: each is one line that names the reason."""
    bundle = copy_of(digits_bundle, tmp_path)
    path = bundle.folder / "report" / WEIGHTS_FILE
    state = load_file(path)
    save_file({**state, "head.bias": state["head.bias"].flip(0)}, path)
    with pytest.raises(TwinUnavailable, match=r"differ by up to 0\.\d+ on the golden examples, the limit is"):
        read_twin(bundle)
    save_file({**state, "head.bias": state["head.bias"][:5].clone()}, path)
    with pytest.raises(TwinUnavailable, match="of other names or shapes than lenet5"):
        read_twin(bundle)
    path.write_bytes(b"damaged")
    with pytest.raises(TwinUnavailable, match="cannot be read"):
        read_twin(bundle)


def test_large_networks_keep_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit nothing is written, and the file of an earlier run is removed."""
    assert write_weights(tmp_path, torch.nn.Linear(3, 2))
    monkeypatch.setattr(weights_file, "MAX_BYTES", 31)
    assert not write_weights(tmp_path, torch.nn.Linear(3, 2))
    assert not (tmp_path / WEIGHTS_FILE).exists()
