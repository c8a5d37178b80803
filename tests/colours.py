"""A small real network that names the strongest colour of an image, and how tests publish it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import (
    GOLDEN_FILE,
    MODEL_FILE,
    Bundle,
    Calibration,
    Description,
    Estimate,
    Evaluation,
    Geometry,
    Golden,
    Provenance,
    write_golden,
)

LABELS = ("red", "green", "blue")
SIDE = 8


class Publish(Protocol):
    """Publishes the next version of a model that names the strongest colour of an image."""

    def __call__(self, model: str = "colours", *, rotate: int = 0, lie: bool = False) -> Bundle:
        """`rotate=1` names the next colour instead; `lie=True` has golden probabilities of another."""


def write_colours(folder: Path, *, rotate: int, lie: bool, endless: bool = False) -> Description:
    """Write a version's files, with pure red, green and blue as its golden examples.

    An endless network never ends its first run, and so never ends loading.
    """
    onnx.save(_colours_graph(rotate), folder / MODEL_FILE)
    images = np.zeros((3, SIDE, SIDE, 3), np.uint8)  # (3, H, W, C): pure red, green, blue
    images[range(3), :, :, range(3)] = 255
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"image": images})
    write_golden(Golden(images, np.roll(probabilities, int(lie), axis=1)), folder)
    assert (folder / GOLDEN_FILE).exists()
    if endless:
        onnx.save(_colours_graph(rotate, embedding=_endless_node()), folder / MODEL_FILE)
    return Description(
        labels=LABELS,
        geometry=Geometry(height=SIDE, width=SIDE, channels=3),
        embedding_size=3,
        calibration=Calibration(temperature=1, ece_before=0, ece_after=0),
        evaluation=Evaluation(images=3, correct=3, accuracy=Estimate(value=1, low=0.4, high=1), ece=0),
        provenance=Provenance(
            recipe="colours",
            recipe_digest="0" * 64,
            data_digest="0" * 64,
            created_at=datetime.now(UTC),
            framework="by hand",
            parameters=9,
        ),
    )


def _endless_node() -> onnx.NodeProto:
    """A loop without an end, from `mean` to `embedding`: its condition is a constant."""
    body = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["goes_on_out"], value=numpy_helper.from_array(np.ones((), bool))
            ),
            helper.make_node("Neg", ["in"], ["out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("out", TensorProto.FLOAT, None),
        ],
    )
    return helper.make_node("Loop", ["", "", "mean"], ["embedding"], body=body)


_MEAN_NODE = helper.make_node("Identity", ["mean"], ["embedding"])


def _colours_graph(rotate: int, embedding: onnx.NodeProto = _MEAN_NODE) -> onnx.ModelProto:
    """Mean of each channel, then softmax(4 * mean / 255), the classes rotated."""
    weights = np.roll(np.eye(3, dtype=np.float32) * 4 / 255, rotate, axis=1)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        embedding,
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
