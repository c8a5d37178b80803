"""The exported file is valid, self-contained, reproducible, and has no paths of the exporting machine."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import Geometry
from training.errors import ExportError
from training.evaluation.onnx_session import open_session, run
from training.evaluation.parity import BATCH_SIZES, check_parity
from training.export.export import OPSET, Classifier, check_graph, export, strip_metadata
from training.networks import build
from training.recipe import NetworkRecipe

GEOMETRY = Geometry(height=20, width=28, channels=3)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """A network with dropout, and batch norm statistics that differ from the initial ones."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(batch_norm=True, dropout=0.3), GEOMETRY, 4).train()
    for _ in range(3):
        network(torch.randint(0, 256, (16, 20, 28, 3), dtype=torch.uint8))
    return Classifier(network, temperature=1.7).eval()


@pytest.fixture(scope="module")
def exported(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported file of the network."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(classifier, GEOMETRY, path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Random pixels; their number leaves a remainder at every batch size above 1."""
    return np.random.default_rng(0).integers(0, 256, (65 + 64 + 1, 20, 28, 3), dtype=np.uint8)


def test_exporting_is_reproducible_and_prints_nothing(
    classifier: Classifier, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The digest identifies the weights, and stdout is free for results."""
    export(classifier, GEOMETRY, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_the_file_has_no_paths_of_the_exporting_machine(exported: Path) -> None:
    """No source path, no metadata, no documentation strings, and one file only."""
    content = exported.read_bytes()
    for path in (str(Path(__file__).parents[3]), torch.__path__[0], "site-packages", ".py"):
        assert path.encode() not in content
    model = onnx.load(exported)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]


def test_the_graph_is_what_the_bundle_requires(exported: Path) -> None:
    """uint8 NHWC in, probabilities and embedding out, dynamic batch, ONNX's own operators only."""
    session = open_session(exported)
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 20, 28, 3])
    outputs = {output.name: (output.type, output.shape) for output in session.get_outputs()}
    assert outputs == {
        "probabilities": ("tensor(float)", ["batch", 4]),
        "embedding": ("tensor(float)", ["batch", 84]),
    }
    model = onnx.load(exported)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert "Dropout" not in {node.op_type for node in model.graph.node}


def with_condition(exported: Path, domain: str) -> onnx.ModelProto:
    """The exported graph with an If node, whose branches have a node of that domain each."""
    model = onnx.load(exported)
    value = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["batch", 4])
    then, other = (
        helper.make_graph(
            [helper.make_node("Identity", ["probabilities"], ["chosen"], domain=domain)], name, [], [value]
        )
        for name in ("then_branch", "else_branch")
    )
    condition = helper.make_node("If", ["always"], ["spare"], then_branch=then, else_branch=other)
    model.graph.node.append(condition)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))  # noqa: FBT003
    return model


def test_operator_sets_that_no_node_uses_are_dropped(exported: Path) -> None:
    """The exporter may list operator sets of inlined functions; a server does not need them."""
    model = with_condition(exported, domain="")
    for domain in ("pkg.onnxscript.torch_lib.common", "com.microsoft"):
        model.opset_import.append(helper.make_opsetid(domain, 1))
    strip_metadata(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    check_graph(model, (2, 20, 28, 3))


def test_foreign_operator_sets_that_a_node_uses_are_rejected(exported: Path) -> None:
    """Also in a branch of an If node."""
    model = with_condition(exported, domain="com.microsoft")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    strip_metadata(model)
    with pytest.raises(ExportError, match=r"'com\.microsoft': 1"):
        check_graph(model, (2, 20, 28, 3))


def test_probabilities_are_calibrated_and_sum_to_one(
    classifier: Classifier, exported: Path, images: np.ndarray
) -> None:
    """The file contains the temperature and the softmax."""
    probabilities, _ = run(open_session(exported), images)
    with torch.no_grad():
        logits, _ = classifier.network(torch.from_numpy(images))
    expected = torch.softmax(logits / 1.7, dim=1).numpy()
    assert np.abs(probabilities - expected).max() < 1e-5
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-5


def test_parity_holds_at_every_batch_size(classifier: Classifier, exported: Path, images: np.ndarray) -> None:
    """The same labels as torch at batch sizes 1, 3, 7 and 64, and probabilities within 1e-4."""
    assert BATCH_SIZES == (1, 3, 7, 64)
    checks = check_parity(classifier, open_session(exported), images, max_gap=1e-4)
    assert all(check.passed for check in checks)
    assert "520 of 520" in checks[0].detail


def test_parity_notices_other_weights(classifier: Classifier, exported: Path, images: np.ndarray) -> None:
    """The file of another network fails, with the size of the gap."""
    other = Classifier(build(NetworkRecipe(), GEOMETRY, 4), temperature=1.0).eval()
    checks = check_parity(other, open_session(exported), images, max_gap=1e-4)
    assert not any(check.passed for check in checks)
    assert "maximum 0.0001 (gates.max_parity_gap)" in checks[1].detail
