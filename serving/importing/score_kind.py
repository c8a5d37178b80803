"""What an output holds: logits, probabilities or one sigmoid, by the operators behind it and its values.

Where these leave it open, the user is asked: a softmax over probabilities gives other probabilities.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from serving.counted import counted
from serving.errors import UnsupportedModel, UsageError
from serving.importing.graph import constants, value_of
from serving.importing.score_source import ScoreSource, find_source
from serving.importing.scores import Kind, Scores

_TOLERANCE = 1e-3  # of probabilities and their sum in float32
_COARSE_TOLERANCE = 2e-2  # of those in FP16 or from integers
_FLOAT_ROUNDING = 1e-4  # of the sum of probabilities that nothing but float32 rounds
_SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid"})  # several are independent, whatever some values sum to


@dataclass(frozen=True, slots=True)
class _Values:
    """What the file returned for some images, (N, outputs)."""

    raw: npt.NDArray[np.float64]
    tolerance: float

    @property
    def outputs(self) -> int:
        return int(self.raw.shape[1])

    @property
    def sums(self) -> npt.NDArray[np.float64]:
        sums: npt.NDArray[np.float64] = self.raw.sum(axis=1)  # (N,)
        return sums

    @property
    def off(self) -> float:
        """How far the sums are from 1."""
        return float(np.abs(self.sums - 1).max())

    @property
    def are_in_range(self) -> bool:
        return bool((self.raw >= -self.tolerance).all() and (self.raw <= 1 + self.tolerance).all())

    @property
    def sum_to_one(self) -> bool:
        return self.outputs > 1 and self.are_in_range and self.off <= self.tolerance

    @property
    def have_one_sum(self) -> bool:
        limit = self.tolerance * max(1.0, float(np.abs(self.sums).max()))
        return self.outputs > 1 and float(np.ptp(self.sums)) <= limit

    @property
    def are_log_probabilities(self) -> bool:
        if self.raw.max() > self.tolerance:
            return False
        return self.outputs > 1 and bool((np.abs(np.exp(self.raw).sum(axis=1) - 1) <= self.tolerance).all())


def describe_scores(
    graph: onnx.GraphProto, name: str, raw: npt.NDArray[np.generic], *, wanted: Kind | None, coarse: bool
) -> tuple[Scores, bool]:
    """Decide what an output holds, by the operators behind it and by its values.

    Args:
        graph: of the file.
        name: the output.
        raw: what the file returned for some images.
        wanted: --output.
        coarse: whether the file computes in FP16 or integers.

    Returns: the output, and whether its kind is the most likely one only.

    Raises:
        UnsupportedModel: the values are not finite, or belong to several labels, or are percentages.
        UsageError: the values contradict --output, or could be of two kinds.
    """
    values = _Values(
        raw.astype(np.float64).reshape(len(raw), -1), _COARSE_TOLERANCE if coarse else _TOLERANCE
    )
    finite = int(np.isfinite(values.raw).all(axis=1).sum())
    if finite < len(raw):
        raise UnsupportedModel(
            f"output {name!r} is NaN or infinite for {len(raw) - finite} of {counted(len(raw), 'image')}: "
            "check --mean, --std and --pixels, or export the model in float32"
        )
    source = find_source(graph, name)
    _refuse_sorted(graph, name, source, values)
    _refuse_percentages(name, source, values)
    if wanted is None:
        kind = _kind(name, source, values, coarse=coarse)
        proven = kind != "logits" or source.is_layer or values.are_log_probabilities
        return _scores(name, kind, source, values), not proven
    _check_kind(name, source, wanted, values)
    return _scores(name, wanted, source, values), False


def _scores(name: str, kind: Kind, source: ScoreSource, values: _Values) -> Scores:
    # The server refuses sums that quantised probabilities of other images can have.
    is_rounded = kind == "probabilities" and (source.is_quantized or values.off > _FLOAT_ROUNDING)
    return Scores(name, kind, values.outputs, is_rounded)


def _refuse_sorted(graph: onnx.GraphProto, name: str, source: ScoreSource, values: _Values) -> None:
    """Refuse the values of TopK: every image would get the first label, or the last one."""
    if source.top is None:
        return
    count = _count(graph, source.top)
    steps = np.diff(values.raw, axis=1)  # (N, outputs - 1)
    are_sorted = bool((steps <= 0).all() or (steps >= 0).all())
    if count != values.outputs and (count == 1 or not are_sorted):
        return  # of the pixels of each class
    before = source.top.input[0]
    remedy = "export the model without TopK, with the scores before it as output"
    if before in {output.name for output in graph.output}:
        remedy = f"add --output-name {before}, the scores before TopK"
    raise UnsupportedModel(
        f"output {name!r} holds {counted(values.outputs, 'value')} of TopK, sorted for each image, so that "
        f"none belongs to a certain label: {remedy}"
    )


def _count(graph: onnx.GraphProto, top: onnx.NodeProto) -> int | None:
    """Return how many values TopK chooses; None if the graph computes that."""
    for attribute in top.attribute:
        if attribute.name == "k":  # before opset 10
            return attribute.i
    size = constants(graph).get(top.input[1]) if len(top.input) > 1 else None
    return int(value_of(size).reshape(-1)[0]) if size is not None else None


def _refuse_percentages(name: str, source: ScoreSource, values: _Values) -> None:
    """Refuse a softmax whose values were scaled later: no --output describes them."""
    is_scaled = source.squashed_by == "Softmax" != source.operator and values.have_one_sum
    if is_scaled and not values.sum_to_one:
        raise UnsupportedModel(
            f"output {name!r} is a softmax that {source.operator} changes: its {values.outputs} values sum "
            f"to {values.sums.mean():.4g}, not 1; export the model with the softmax itself as output"
        )


def _refuse_independent(name: str, source: ScoreSource, values: _Values) -> None:
    """Refuse several sigmoids: for some images they sum to 1 by chance, for others the server would fail."""
    if source.operator in _SIGMOIDS and values.outputs > 1:
        raise UnsupportedModel(
            f"output {name!r} has {values.outputs} independent probabilities (computed by "
            f"{source.operator}), and a server gives each image one label: import a network that was trained "
            "for that, with a softmax"
        )


def _kind(name: str, source: ScoreSource, values: _Values, *, coarse: bool) -> Kind:
    _refuse_independent(name, source, values)
    if source.operator == "Sigmoid" and values.are_in_range:
        return "sigmoid"
    if source.operator == "Softmax" and values.outputs > 1 and not values.sum_to_one:
        raise UnsupportedModel(
            f"output {name!r} is a softmax, but its {values.outputs} values do not sum to 1 (off by "
            f"{values.off:.2g}): export it with the softmax over the classes"
            f"{', or quantise the network without its softmax' if coarse else ''}"
        )
    if values.sum_to_one and not source.is_layer:
        return "probabilities"
    if evidence := _evidence(source, values):
        raise UsageError(f"output {name!r} can be logits or probabilities: {evidence}; {_question(values)}")
    return "logits"


def _evidence(source: ScoreSource, values: _Values) -> str:
    """Return what speaks against logits; or ""."""
    images = counted(len(values.raw), "generated image")
    by = f" (computed by {source.squashed_by or source.operator})" if source.operator else ""
    low, high = values.raw.min(), values.raw.max()
    if values.sum_to_one:
        return f"its {values.outputs} values{by} sum to 1 for {images}, but no softmax gives them"
    if source.is_layer or values.are_log_probabilities:
        return ""
    cases = (
        (values.are_in_range, f"its values{by} for {images} are all in 0..1 ({low:.3g} to {high:.3g})"),
        (
            values.have_one_sum,
            f"its {values.outputs} values{by} sum to {values.sums.mean():.3g} for each of {images}",
        ),
        (source.squashed_by, f"its values{by} for {images} are bounded ({low:.3g} to {high:.3g})"),
        (
            source.operator == "Log",
            f"its values{by} for {images} are not the logarithms of probabilities that sum to 1",
        ),
    )
    return next((text for holds, text in cases if holds), "")


def _question(values: _Values) -> str:
    if values.outputs == 1 and values.are_in_range:
        return "add --output sigmoid if a value is the probability of the second label, or --output logits"
    if values.sum_to_one:
        return "add --output probabilities or --output logits"
    return "add --output logits if they are logits, or export the model with its logits as output"


def _check_kind(name: str, source: ScoreSource, kind: Kind, values: _Values) -> None:
    if kind == "sigmoid" and (values.outputs > 1 or not values.are_in_range):
        where = "" if values.are_in_range else " outside of 0..1"
        raise UsageError(
            f"--output sigmoid: output {name!r} has {counted(values.outputs, 'value')}{where}, a sigmoid has "
            "one in 0..1: leave --output out"
        )
    if kind == "probabilities" and values.outputs == 1:
        raise UsageError(
            f"--output probabilities: output {name!r} has 1 value, and each class needs one: add --output "
            "sigmoid if it is the probability of the second of two labels"
        )
    if kind == "probabilities":
        _refuse_independent(name, source, values)
    if kind == "probabilities" and not values.sum_to_one:
        raise UsageError(
            f"--output probabilities: the {values.outputs} values of output {name!r} do not sum to 1 (off by "
            f"{values.off:.2g}); leave --output out"
        )
    if kind == "logits" and (
        source.operator in ("Softmax", "Sigmoid") or (source.operator in _SIGMOIDS and values.outputs > 1)
    ):
        raise UsageError(
            f"--output logits: {source.operator} computes output {name!r}, so it holds probabilities; "
            "leave --output out"
        )
