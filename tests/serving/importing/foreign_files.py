"""ONNX files in the forms that other programs write, with a small convolutional network of random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serving.bundle.images import Pixels

SIDE = 16
CLASSES = 5
FILTERS = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Arrays = dict[str, npt.NDArray[np.generic]]


def weights(dtype: type[np.generic] = np.float32, outputs: int = CLASSES) -> Arrays:
    """Weights of a 3x3 convolution and a dense layer."""
    random = np.random.default_rng(7)
    return {
        "conv.weight": random.normal(0, 0.6, (FILTERS, 3, 3, 3)).astype(dtype),
        "conv.bias": random.normal(0, 0.2, FILTERS).astype(dtype),
        "dense.weight": random.normal(0, 1.5, (outputs, FILTERS)).astype(dtype),
        "dense.bias": random.normal(0, 0.5, outputs).astype(dtype),
    }


def layers(image: str = "x", result: str = "logits") -> list[onnx.NodeProto]:
    """From (N, 3, H, W) to (N, outputs): convolution, ReLU, average, flatten, dense."""
    node = helper.make_node
    return [
        node("Conv", [image, "conv.weight", "conv.bias"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["maps"], ["relu"]),
        node("GlobalAveragePool", ["relu"], ["pooled"]),
        node("Flatten", ["pooled"], ["features"], axis=1),
        node("Gemm", ["features", "dense.weight", "dense.bias"], [result], transB=1),
    ]


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: Arrays,
    *,
    shape: Sequence[int | str | None] = ("N", 3, SIDE, SIDE),
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
    producer: str = "by hand",
    change: Callable[[onnx.ModelProto], None] = lambda _: None,
) -> Path:
    """Write a model; by default x, float32 (N, 3, 16, 16), to logits."""
    graph = helper.make_graph(
        nodes,
        "network",
        inputs or [helper.make_tensor_value_info("x", kind, shape)],
        outputs or [helper.make_tensor_value_info("logits", kind, (shape[0], CLASSES))],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(each, 1 if each == "com.microsoft" else 3) for each in sorted(domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name=producer)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def plain(path: Path, *, batch: int | str | None = "N", opset: int = 17) -> Path:
    """As torch writes it: float32 NCHW, logits."""
    return write(path, layers(), weights(), shape=(batch, 3, SIDE, SIDE), opset=opset)


def keras(path: Path) -> Path:
    """As tf2onnx writes it: NHWC, transposed for its convolution, MatMul and Add, softmax."""
    node = helper.make_node
    arrays = weights()
    arrays["dense.weight"] = np.ascontiguousarray(arrays["dense.weight"].T)  # (FILTERS, CLASSES)
    nodes = [
        node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]),
        *layers("nchw")[:2],
        node("Transpose", ["relu"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("ReduceMean", ["nhwc"], ["features"], axes=[1, 2], keepdims=0),
        node("MatMul", ["features", "dense.weight"], ["product"]),
        node("Add", ["product", "dense.bias"], ["scores"]),
        node("Softmax", ["scores"], ["logits"], axis=1),
    ]
    return write(path, nodes, arrays, shape=("unk__1", SIDE, SIDE, 3), producer="tf2onnx", opset=13)


def ultralytics(path: Path) -> Path:
    """As Ultralytics writes it: batch 1, softmax, labels as a Python dict in the metadata."""
    nodes = [*layers(result="scores"), helper.make_node("Softmax", ["scores"], ["logits"], axis=1)]
    metadata = {
        "author": "Ultralytics",
        "task": "classify",
        "imgsz": f"[{SIDE}, {SIDE}]",
        "names": str({number: f"class {number}" for number in range(CLASSES)}),
    }
    return write(path, nodes, weights(), shape=(1, 3, SIDE, SIDE), metadata=metadata, producer="pytorch")


def model_zoo(path: Path) -> Path:
    """As the ONNX model zoo has it: IR 3, weights among the inputs, batch 1 in a Reshape to (1, K, 1, 1)."""
    node = helper.make_node
    arrays = weights()
    arrays["last.weight"] = arrays.pop("dense.weight").reshape(CLASSES, FILTERS, 1, 1)
    arrays["shape"] = np.array([1, CLASSES, 1, 1], np.int64)
    nodes = [
        *layers()[:2],
        node("Conv", ["relu", "last.weight", "dense.bias"], ["scores"]),
        node("GlobalAveragePool", ["scores"], ["averages"]),
        node("Reshape", ["averages", "shape"], ["logits"]),
    ]

    def as_inputs(model: onnx.ModelProto) -> None:
        model.ir_version = 3
        for tensor in model.graph.initializer:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )

    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES, 1, 1))]
    return write(
        path,
        nodes,
        arrays,
        shape=(1, 3, SIDE, SIDE),
        outputs=outputs,
        opset=8,
        producer="caffe2",
        change=as_inputs,
    )


def caffe(path: Path) -> Path:
    """As converters of 2017 wrote it: opset 6, where Gemm has an attribute for its bias."""
    nodes = layers()
    nodes[-1] = helper.make_node(
        "Gemm", ["features", "dense.weight", "dense.bias"], ["logits"], transB=1, broadcast=1
    )
    return write(path, nodes, weights(), shape=(1, 3, SIDE, SIDE), opset=6, producer="caffe")


def half(path: Path) -> Path:
    """The plain network in FP16, input and output too."""
    return write(path, layers(), weights(np.float16), kind=TensorProto.FLOAT16)


def double(path: Path) -> Path:
    """The plain network, which takes and gives float64."""
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["single"], to=TensorProto.FLOAT),
        *layers("single", "scores"),
        node("Cast", ["scores"], ["logits"], to=TensorProto.DOUBLE),
    ]
    return write(path, nodes, weights(), kind=TensorProto.DOUBLE)


def raw_pixels(path: Path) -> Path:
    """uint8 NHWC in: the graph casts and scales its own pixels."""
    node = helper.make_node
    arrays: Arrays = {**weights(), "scale": np.array(1 / 127.5, np.float32), "one": np.array(1, np.float32)}
    nodes = [
        node("Transpose", ["x"], ["bytes"], perm=[0, 3, 1, 2]),
        node("Cast", ["bytes"], ["pixels"], to=TensorProto.FLOAT),
        node("Mul", ["pixels", "scale"], ["scaled"]),
        node("Sub", ["scaled", "one"], ["centred"]),
        *layers("centred"),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", CLASSES))]
    return write(path, nodes, arrays, shape=("N", SIDE, SIDE, 3), kind=TensorProto.UINT8, outputs=outputs)


def quantized(path: Path) -> Path:
    """As ONNX Runtime's quantizer writes it: QuantizeLinear and DequantizeLinear around the dense layer."""
    node = helper.make_node
    arrays = weights()
    dense = arrays.pop("dense.weight")
    scale = np.abs(dense).max() / 127
    arrays |= {
        "dense.quantized": np.round(dense / scale).astype(np.int8),
        "dense.scale": np.array(scale, np.float32),
        "dense.zero": np.array(0, np.int8),
        "features.scale": np.array(0.02, np.float32),
        "features.zero": np.array(0, np.uint8),
    }
    nodes = layers()
    nodes[-1:] = [
        node("QuantizeLinear", ["features", "features.scale", "features.zero"], ["features.quantized"]),
        node(
            "DequantizeLinear", ["features.quantized", "features.scale", "features.zero"], ["features.back"]
        ),
        node("DequantizeLinear", ["dense.quantized", "dense.scale", "dense.zero"], ["dense.weight"]),
        node("Gemm", ["features.back", "dense.weight", "dense.bias"], ["logits"], transB=1),
    ]
    return write(path, nodes, arrays, opset=13)


def sigmoid(path: Path) -> Path:
    """As Keras writes two classes: one probability, of the second label."""
    nodes = [*layers(result="score"), helper.make_node("Sigmoid", ["score"], ["logits"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", 1))]
    return write(path, nodes, weights(outputs=1), outputs=outputs)


def mixes_its_batch(path: Path) -> Path:
    """Batch 1, in a graph that cannot take more: it moves the batch into another axis, as attention does."""
    node = helper.make_node
    arrays: Arrays = {
        **weights(),
        "rows": np.array([FILTERS, 1], np.int64),
        "row": np.array([1, FILTERS], np.int64),
    }
    nodes = layers()
    nodes[-1:] = [
        node("Reshape", ["features", "rows"], ["column"]),
        node("Softmax", ["column"], ["attention"], axis=0),
        node("Reshape", ["attention", "row"], ["attended"]),
        node("Gemm", ["attended", "dense.weight", "dense.bias"], ["logits"], transB=1),
    ]
    return write(path, nodes, arrays, shape=(1, 3, SIDE, SIDE))


def reference(
    path: Path, images: Pixels, feed: Callable[[Pixels], npt.NDArray[np.generic]]
) -> dict[str, npt.NDArray[np.floating]]:
    """Run the file itself on each image alone: output name -> a row for each image.

    Args:
        path: the file.
        images: (N, H, W, 3) uint8.
        feed: (1, H, W, 3) uint8 -> what the file takes.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    name = session.get_inputs()[0].name
    rows = [session.run(names, {name: feed(image[np.newaxis])}) for image in images]
    return {each: np.concatenate([row[at] for row in rows]) for at, each in enumerate(names)}


def nchw(images: Pixels, dtype: type[np.generic] = np.float32) -> npt.NDArray[np.generic]:
    """Normalise as torchvision does: (N, H, W, 3) uint8 -> (N, 3, H, W)."""
    values = (images.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(dtype)
