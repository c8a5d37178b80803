"""Makes a graph take batches of any size: frees the shapes that fix it, or runs images one by one."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from serving.importing.graph import constants, reachable, value_of

_SCAN_OPSET = 9  # before, Scan had another form


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Forget the shapes of inner tensors, which hold the export's batch size. ONNX Runtime infers them."""
    del graph.value_info[:]


def free_batch(graph: onnx.GraphProto, image: str, batch: int) -> None:
    """Let every Reshape of image data keep the batch axis, where the export made it a constant.

    This is a guess: a first axis of that length may be something else. So the result is compared with the
    file, image by image.

    Args:
        graph: changed in place.
        image: its input.
        batch: batch size of the export.
    """
    known, data = constants(graph), reachable(graph, image)
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[0] not in data or node.input[1] not in known:
            continue
        shape = value_of(known[node.input[1]]).astype(np.int64)
        if len(shape) and shape[0] == batch and 0 not in shape:
            shape = np.concatenate([np.zeros(1, np.int64), shape[1:]])  # 0: as in the tensor before,
            del node.attribute[:]  # unless `allowzero` is set, the only attribute, as torch does
            name = f"lenserve_shape_{number}"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name


def run_one_by_one(
    graph: onnx.GraphProto,
    *,
    image: onnx.ValueInfoProto,
    image_shape: Sequence[int],
    outputs: Sequence[tuple[onnx.ValueInfoProto, int]],
) -> None:
    """Replace the nodes by one Scan, which runs them for each image of the batch with batch size 1.

    Args:
        graph: changed in place; its weights stay where they are, and the body of the Scan reads them.
        image: name and type of the input.
        image_shape: of one image.
        outputs: name and type of each output with a row for each image, and the length of that row.
    """
    kind = image.type.tensor_type.elem_type
    single, batch_of_one = "lenserve_single", [1, *image_shape]
    nodes = [
        _reshape(graph, single, image.name, batch_of_one),
        *graph.node,
        *(_reshape(graph, value.name, f"{value.name}_row", [length]) for value, length in outputs),
    ]
    body = helper.make_graph(
        nodes,
        "one_image",
        [helper.make_tensor_value_info(single, kind, list(image_shape))],
        [
            helper.make_tensor_value_info(f"{value.name}_row", value.type.tensor_type.elem_type, [length])
            for value, length in outputs
        ],
    )
    # The body sees names of the outer graph, so the outer input and outputs need other names.
    outer = f"{image.name}_batch"
    scan = helper.make_node(
        "Scan", [outer], [f"{value.name}_rows" for value, _ in outputs], body=body, num_scan_inputs=1
    )
    del graph.node[:]
    graph.node.append(scan)


def may_scan(opset: int) -> bool:
    """Whether the operator set of a graph has the Scan that `run_one_by_one` uses."""
    return opset >= _SCAN_OPSET


def _reshape(graph: onnx.GraphProto, data: str, result: str, shape: Sequence[int]) -> onnx.NodeProto:
    name = f"lenserve_shape_of_{result}"
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return helper.make_node("Reshape", [data, name], [result])
