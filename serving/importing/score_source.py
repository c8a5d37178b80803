"""Which operators computed the scores of a model: looks back from its output. Independent of values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

import onnx

from serving.importing.graph import PASSING, independent_of_inputs, producers

# Operators that choose, order and clip values: the scores after them are still those before them.
_CHOOSING = PASSING | {"Clip", "Concat", "QLinearConcat", "Slice", "Gather", "Split"}
# Operators that give a multiple of their inputs, with constants, or a mean of them.
_SCALING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Sum", "Mean", "QLinearAdd", "QLinearMul", "BatchNormalization"}
    | {"ReduceSum", "ReduceMean"}
    | {"AveragePool", "GlobalAveragePool", "QLinearAveragePool", "QLinearGlobalAveragePool"}
)
_UNBOUNDED = (_CHOOSING - {"Clip"}) | _SCALING | {"Relu"}  # after a layer, any value is possible
_SQUASHED = _CHOOSING | _SCALING | {"Min", "Max", "Pow", "Sqrt"}  # after a bounded operator, it is not
_SCORING = frozenset({"Sigmoid", "Softmax", "HardSigmoid"})
_SQUASHING = _SCORING | {"Tanh", "Softsign"}
# Operators that keep the order of scores: after TopK, they are still sorted.
_ORDERED = (
    PASSING
    | (_SCALING - {"ReduceSum", "ReduceMean"} - {name for name in _SCALING if "AveragePool" in name})
    | (
        _SQUASHING
        | {"Relu", "Clip", "Log", "LogSoftmax", "Exp", "Sqrt", "Slice", "Split", "Gather", "Concat"}
    )
)
_LAYERS = frozenset(
    {"Gemm", "MatMul", "Conv", "FusedGemm", "FusedMatMul", "FusedConv"}
    | {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulNBits"}
    | {"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)
_SEVERAL = frozenset({"Concat", "QLinearConcat", "QLinearAdd", "Sum", "Mean", "Min", "Max", "Add", "Sub"})
_PRODUCTS, _FIRST_BY_SECOND = frozenset({"Mul", "QLinearMul"}), frozenset({"Div", "Pow"})
_QUANTIZED = "QLinear"  # ONNX Runtime's QLinearSigmoid and QLinearSoftmax
_STEPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_EXACT = frozenset(name for name in _SQUASHED - _STEPS if not name.startswith(_QUANTIZED))

Producers = Mapping[str, onnx.NodeProto]


@dataclass(frozen=True, slots=True)
class ScoreSource:
    """The operators behind an output."""

    operator: str  # that gives the scores, such as Sigmoid, also if it is quantised or clipped
    squashed_by: str  # the only operator behind them that bounds its values, scaled since; "": none
    is_quantized: bool  # whether they have few steps, as after QLinearSoftmax or DequantizeLinear
    top: onnx.NodeProto | None  # TopK, if the values are those that it chose
    is_layer: bool  # a dense layer or convolution of features that are not scores: no value is impossible


def find_source(graph: onnx.GraphProto, output: str) -> ScoreSource:
    """Look back from an output."""
    found = producers(graph)
    scales = (node.output[1:] for node in graph.node if node.op_type == "DynamicQuantizeLinear")
    fixed = independent_of_inputs(graph, also=chain.from_iterable(scales))
    chosen, squashing = (
        {_type(node) for node in _origins(output, found, fixed, through)}
        for through in (_CHOOSING, _SQUASHED)
    )
    unbounded = _origins(output, found, fixed, _UNBOUNDED)
    ordered = _origins(output, found, fixed, _ORDERED)
    inexact = [node.op_type for node in _origins(output, found, fixed, _EXACT)]
    return ScoreSource(
        operator=chosen.pop() if len(chosen) == 1 else _type(found.get(output, onnx.NodeProto())),
        squashed_by=squashing.pop() if len(squashing) == 1 and squashing <= _SQUASHING else "",
        is_quantized=any(name in _STEPS or name.startswith(_QUANTIZED) for name in inexact),
        top=next((node for node in ordered if node.op_type == "TopK"), None),
        is_layer=bool(unbounded) and all(_is_layer(node, found, fixed) for node in unbounded),
    )


def _type(node: onnx.NodeProto) -> str:
    return node.op_type.removeprefix(_QUANTIZED)


def _origins(
    tensor: str, found: Producers, fixed: Collection[str], through: Collection[str]
) -> list[onnx.NodeProto]:
    """Return the nodes that computed a tensor, before operators of `through`; an empty node is the image."""
    waiting, seen, origins = [tensor], set(fixed), []
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        node = found.get(name, onnx.NodeProto())
        before = _operands(node, fixed) if node.op_type in through else []
        waiting += before
        if not before:
            origins.append(node)
    return origins


def _operands(node: onnx.NodeProto, fixed: Collection[str]) -> list[str]:
    """Return the inputs whose values a node passes on; none if it combines them otherwise."""
    data = [name for name in node.input if name and name not in fixed]
    if node.op_type in _SEVERAL:
        return data
    if node.op_type in _PRODUCTS:  # with a constant
        return data if len(data) == 1 else []
    if node.op_type in _FIRST_BY_SECOND:
        return data if data == node.input[:1] else []
    return list(node.input[:1])  # others are shapes, indices or limits


def _is_layer(node: onnx.NodeProto, found: Producers, fixed: Collection[str]) -> bool:
    data = [name for name in node.input if name and name not in fixed]
    if node.op_type not in _LAYERS or len(data) != 1:
        return False
    if any(attribute.name == "activation" for attribute in node.attribute):  # of ONNX Runtime's fused layers
        return False
    features = {_type(each) for each in _origins(data[0], found, fixed, _SQUASHED)}
    return not features <= _SCORING
