"""Networks that take longer than the small one, so that a server can be overloaded by few calls."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from serving.bundle import MODEL_FILE, Description
from tests.colours import write_colours

_HIDDEN = 2048


def write_slow(folder: Path, *, layers: int, width: int = _HIDDEN, rotate: int = 0) -> Description:
    """Write the files of a network that names a colour, and also computes layers, which it multiplies by 0.

    Args:
        folder: where the files go.
        layers: how many; of 2,048 by 2,048 weights, each takes about 0.05 ms for an image in a large batch.
        width: square root of the weights of a layer.
        rotate: as in `write_colours`.
    """
    description = write_colours(folder, rotate=rotate, lie=False)
    model = onnx.load(folder / MODEL_FILE)
    graph, rng = model.graph, np.random.default_rng(3)
    weights = {
        "wide": rng.normal(size=(3, width)),
        "square": rng.normal(0, width**-0.5, (width, width)),
        "narrow": np.zeros((width, 3)),
    }
    for name, values in weights.items():
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    added = [helper.make_node("MatMul", ["mean", "wide"], ["hidden0"])]
    for number in range(layers):
        weighted, hidden = f"weighted{number}", f"hidden{number + 1}"
        added.append(helper.make_node("MatMul", [f"hidden{number}", "square"], [weighted]))
        added.append(helper.make_node("Relu", [weighted], [hidden]))
    added.append(helper.make_node("MatMul", [f"hidden{layers}", "narrow"], ["nothing"]))
    added.append(helper.make_node("Add", ["mean", "nothing"], ["embedding"]))
    nodes = [node for node in graph.node if node.output[0] != "embedding"]
    at = next(place for place, node in enumerate(nodes) if "embedding" in node.input)
    del graph.node[:]
    graph.node.extend([*nodes[:at], *added, *nodes[at:]])
    onnx.checker.check_model(model)
    onnx.save(model, folder / MODEL_FILE)
    return description
