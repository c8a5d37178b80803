"""A small graph made by hand, and bundles of it: nothing here waits for torch or its export."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import MODEL_FILE, Bundle, Description, Geometry, Golden, Repository, write_golden
from tests.benchmarks.description import describe


def convolution(side: int, maps: int) -> onnx.ModelProto:
    """Pixels -> 3x3 convolution -> mean -> softmax over the maps, as every bundle begins and ends."""
    weights = np.random.default_rng(1).normal(0, 0.1, (maps, 3, 3, 3)).astype(np.float32) / 255
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("ReduceMean", ["active", "axes"], ["embedding"], keepdims=0),
        helper.make_node("Softmax", ["embedding"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", maps]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", maps]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def publish_convolution(repository: Repository, name: str, *, side: int, maps: int) -> Bundle:
    """The next version of it."""

    def write(folder: Path) -> Description:
        file = folder / MODEL_FILE
        onnx.save(convolution(side, maps), file)
        images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)  # (N, H, W, C)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(["probabilities"], {"image": images})
        write_golden(Golden(images, probabilities), folder)
        geometry = Geometry(height=side, width=side, channels=3)
        return describe(name, geometry, 27 * maps, classes=maps, embedding_size=maps)

    return repository.publish(name, write)
