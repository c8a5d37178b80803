"""A graph with folded scaling gives the same outputs with fewer nodes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from training.export.fold_scaling import fold_scaling

MEAN, DEVIATION = ([[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]])
STEPS: dict[str, list[tuple[str, object]]] = {
    "divided": [("Div", 255.0)],
    "normalised": [("Div", 255.0), ("Sub", MEAN), ("Div", DEVIATION)],
    "multiplied and moved": [("Mul", 1 / 127.5), ("Add", -1.0)],
}


def _model(steps: list[tuple[str, object]], *, group: int = 1, second_reader: bool = False) -> ModelProto:
    """(N, 3, 9, 9) float32 pixels -> the steps -> a padded convolution."""
    rng = np.random.default_rng(0)
    tensors = {"filters": rng.normal(size=(6, 3 // group, 3, 3)), "bias": rng.normal(size=6)}
    nodes, name = [], "pixels"
    for number, (kind, constant) in enumerate(steps):
        tensors[f"constant{number}"] = np.array(constant)
        nodes.append(helper.make_node(kind, [name, f"constant{number}"], [f"step{number}"]))
        name = f"step{number}"
    nodes.append(
        helper.make_node("Conv", [name, "filters", "bias"], ["maps"], pads=[1, 1, 1, 1], group=group)
    )
    outputs = [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 6, 9, 9])]
    if second_reader:
        nodes.append(helper.make_node("Relu", [name], ["other"]))
        outputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 3, 9, 9]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 9, 9])],
        outputs,
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _maps(model: ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 9, 9)).astype(np.float32)
    return np.asarray(session.run(["maps"], {"pixels": pixels})[0])


@pytest.mark.parametrize(
    ("steps", "left"),
    [("divided", ["Conv"]), ("normalised", ["Sub", "Conv"]), ("multiplied and moved", ["Sub", "Conv"])],
)
def test_folding_keeps_the_feature_maps_with_at_most_one_pass_over_the_pixels(
    steps: str, left: list[str]
) -> None:
    """Also at the border, where padding is zero after the scaling; unused constants are removed."""
    model = _model(STEPS[steps])
    before = _maps(model)
    fold_scaling(model)
    assert [node.op_type for node in model.graph.node] == left
    np.testing.assert_allclose(_maps(model), before, rtol=1e-5, atol=1e-5)
    assert not [tensor.name for tensor in model.graph.initializer if tensor.name.startswith("constant")]


@pytest.mark.parametrize(
    "other",
    [
        {"steps": []},
        {"steps": STEPS["divided"], "group": 3},
        {"steps": STEPS["divided"], "second_reader": True},
        {"steps": [("Mul", 0.0)]},
    ],
    ids=["nothing to fold", "grouped", "read twice", "by zero"],
)
def test_another_graph_is_unchanged(other: dict[str, object]) -> None:
    """Byte for byte."""
    model = _model(**other)  # type: ignore[arg-type]
    before = model.SerializeToString()
    fold_scaling(model)
    assert model.SerializeToString() == before
