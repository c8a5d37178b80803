"""An output is taken for logits only where operators or values say so; otherwise the user is asked."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from serving.bundle import Bundle, Repository
from serving.bundle.images import Pixels
from serving.bundle.measures import softmax
from serving.counted import counted
from serving.engine.onnx import OnnxEngine
from serving.errors import UnsupportedModel, UsageError
from serving.importing.example_images import example_images
from serving.importing.importer import ImportResult, import_model
from serving.importing.settings import ImportSettings
from serving.importing.summary import notes
from tests.serving.engines import CPU
from tests.serving.importing import foreign_files as files
from tests.serving.importing.foreign_files import CLASSES, MEAN, SIDE, STD, Arrays, nchw, reference

node = helper.make_node
Nodes = list[onnx.NodeProto]

CONSTANTS: Arrays = {
    "one": np.array(1, np.float32),
    "half": np.array(0.5, np.float32),
    "hundred": np.array(100, np.float32),
    "low": np.array(1e-7, np.float32),
    "high": np.array(1 - 1e-7, np.float32),
    "axis": np.array([1], np.int64),
    "all": np.array([CLASSES], np.int64),
    "three": np.array([3], np.int64),
    "identity": np.eye(CLASSES, dtype=np.float32),
    "scale": np.array(1 / 256, np.float32),
    "zero": np.array(0, np.uint8),
    "one.one": np.ones((1, 1), np.float32),
    "scores.scale": np.array(0.1, np.float32),
    "scores.zero": np.array(128, np.uint8),
    **{f"from{number}": np.array([number], np.int64) for number in range(CLASSES)},
    **{f"to{number}": np.array([number + 1], np.int64) for number in range(CLASSES)},
}
QUANTIZED_SIGMOID: Nodes = [
    node("QuantizeLinear", ["s", "scores.scale", "scores.zero"], ["q"]),
    node(
        "QLinearSigmoid",
        ["q", "scores.scale", "scores.zero", "scale", "zero"],
        ["p"],
        domain="com.microsoft",
    ),
    node("DequantizeLinear", ["p", "scale", "zero"], ["logits"]),
]
SIGMOID, SOFTMAX = node("Sigmoid", ["s"], ["p"]), node("Softmax", ["s"], ["p"], axis=1)
KEEP = node("Identity", ["s"], ["logits"])
CLIP = node("Clip", ["p", "low", "high"], ["logits"])
LOGISTIC: Nodes = [  # 1 / (1 + exp(-s))
    node("Neg", ["s"], ["negative"]),
    node("Exp", ["negative"], ["exponential"]),
    node("Add", ["exponential", "one"], ["divisor"]),
    node("Div", ["one", "divisor"], ["logits"]),
]


def tailed(
    path: Path,
    tail: Nodes,
    *,
    outputs: int = CLASSES,
    columns: int | None = None,
    scale: float = 1,
    bias: Sequence[float] | None = None,
) -> Path:
    """Write the small network with its scores `s` and the operators after them.

    Args:
        path: the file.
        tail: operators from `s` to `logits`.
        outputs: number of scores.
        columns: of the output, if they are others.
        scale: of the last layer.
        bias: of the last layer.
    """
    arrays = files.weights(outputs=outputs)
    arrays["dense.weight"] = np.multiply(arrays["dense.weight"], scale, dtype=np.float32)
    if bias is not None:
        arrays["dense.bias"] = np.array(bias, np.float32)
    used = {name for each in tail for name in each.input}
    arrays |= {name: value for name, value in CONSTANTS.items() if name in used}
    value = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", columns or outputs))
    return files.write(path, [*files.layers(result="s"), *tail], arrays, outputs=[value])


def labels_of(count: int, folder: Path) -> Path:
    """Write as many labels."""
    path = folder / f"{count}.txt"
    path.write_text("".join(f"class {number}\n" for number in range(count)))
    return path


def import_file(path: Path, repository: Repository, classes: int, **settings: object) -> ImportResult:
    """Import with torchvision's normalisation."""
    chosen = {"labels": labels_of(classes, path.parent), "mean": MEAN, "std": STD, **settings}
    return import_model(path, "foreign", repository, ImportSettings(**chosen))  # type: ignore[arg-type]


def served(bundle: Bundle, images: Pixels) -> npt.NDArray[np.float32]:
    """Run a version as a server does."""
    engine = OnnxEngine.load(bundle.model_file, CPU, threads=1, max_batch_size=len(images))
    try:
        return engine.run(images).probabilities
    finally:
        engine.close()


def both(second: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the probabilities of both labels, (N, 2), from those of the second, (N, 1)."""
    return np.concatenate([1 - second, second], axis=1)


SIGMOIDS: dict[str, Nodes] = {
    "quantised": QUANTIZED_SIGMOID,
    "clipped": [SIGMOID, CLIP],
    "cast and reshaped": [
        SIGMOID,
        node("Cast", ["p"], ["double"], to=TensorProto.DOUBLE),
        node("Squeeze", ["double", "axis"], ["row"]),
        node("Unsqueeze", ["row", "axis"], ["column"]),
        node("Cast", ["column"], ["logits"], to=TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("case", SIGMOIDS)
def test_one_sigmoid_is_found_behind_what_keeps_its_values(
    case: str, repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """A second sigmoid over it would move every probability towards 0.6."""
    path = tailed(tmp_path / "sigmoid.onnx", SIGMOIDS[case], outputs=1)
    expected = both(reference(path, images, nchw)["logits"])

    result = import_file(path, repository, 2)

    assert result.foreign.scores.kind == "sigmoid"
    assert np.abs(served(result.bundle, images) - expected).max() < 1e-6


UNCLEAR: dict[str, tuple[Nodes, str]] = {
    "1 - sigmoid": ([SIGMOID, node("Sub", ["one", "p"], ["logits"])], "Sigmoid"),
    "written out": (LOGISTIC, "Div"),
    "hard": ([node("HardSigmoid", ["s"], ["logits"])], "HardSigmoid"),
    "clipped scores": ([node("Clip", ["s", "low", "high"], ["logits"])], "Gemm"),
    "a layer after it": (
        [SIGMOID, node("Gemm", ["p", "one.one"], ["logits"])],
        "Gemm",
    ),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_one_value_in_the_range_of_probabilities_is_asked_for(
    case: str, repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """The question names the evidence, and either answer is taken."""
    tail, operator = UNCLEAR[case]
    path = tailed(tmp_path / "unclear.onnx", tail, outputs=1)
    raw = reference(path, images, nchw)["logits"]

    with pytest.raises(UsageError) as asked:
        import_file(path, repository, 2)
    assert str(asked.value).startswith(
        f"output 'logits' can be logits or probabilities: its values (computed by {operator}) for 8 "
        "generated images are all in 0..1 ("
    )
    assert str(asked.value).endswith(
        "); add --output sigmoid if a value is the probability of the second label, or --output logits"
    )
    assert not repository.models()
    as_sigmoid = import_file(path, repository, 2, output="sigmoid").bundle
    assert np.abs(served(as_sigmoid, images) - both(raw)).max() < 1e-6
    if case == "clipped scores":
        as_logits = import_file(path, repository, 2, output="logits").bundle
        assert np.abs(served(as_logits, images) - both(1 / (1 + np.exp(-raw)))).max() < 1e-6


BOUNDED: dict[str, tuple[Nodes, int, str]] = {
    "sigmoids from 1": (
        [SIGMOID, node("Sub", ["one", "p"], ["logits"])],
        CLASSES,
        "its values (computed by Sigmoid) for 8 generated images are all in 0..1 (",
    ),
    "tanh": (
        [node("Tanh", ["s"], ["logits"])],
        CLASSES,
        "its values (computed by Tanh) for 8 generated images are bounded (",
    ),
    "percent of one": (
        [SIGMOID, node("Mul", ["p", "hundred"], ["logits"])],
        1,
        "its values (computed by Sigmoid) for 8 generated images are bounded (",
    ),
    "the same sum": (
        [
            node("Exp", ["s"], ["e"]),
            node("ReduceSum", ["e", "axis"], ["sum"]),
            node("Div", ["e", "sum"], ["quotient"]),
            node("Mul", ["quotient", "hundred"], ["logits"]),
        ],
        CLASSES,
        "its 5 values (computed by Mul) sum to 100 for each of 8 generated images",
    ),
    "logarithms of sigmoids": (
        [SIGMOID, node("Log", ["p"], ["logits"])],
        CLASSES,
        "its values (computed by Log) for 8 generated images are not the logarithms of probabilities that",
    ),
}


@pytest.mark.parametrize("case", BOUNDED)
def test_other_values_that_speak_against_logits_are_asked_for(
    case: str, repository: Repository, tmp_path: Path
) -> None:
    """Nothing is guessed, and no other answer than logits would describe them."""
    tail, outputs, evidence = BOUNDED[case]
    path = tailed(tmp_path / "unclear.onnx", tail, outputs=outputs)

    with pytest.raises(UsageError) as asked:
        import_file(path, repository, max(2, outputs))

    assert str(asked.value).startswith(f"output 'logits' can be logits or probabilities: {evidence}")
    assert str(asked.value).endswith(
        "; add --output logits if they are logits, or export the model with its logits as output"
    )
    assert import_file(path, repository, max(2, outputs), output="logits").foreign.scores.kind == "logits"


SEVERAL: dict[str, Nodes] = {
    "quantised": QUANTIZED_SIGMOID,
    "clipped": [SIGMOID, CLIP],
    "of several heads": [
        *(node("Slice", ["s", f"from{at}", f"to{at}", "axis"], [f"s{at}"]) for at in range(CLASSES)),
        *(node("Sigmoid", [f"s{at}"], [f"p{at}"]) for at in range(CLASSES)),
        node("Concat", [f"p{at}" for at in range(CLASSES)], ["logits"], axis=1),
    ],
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_labels_at_once_are_refused_in_every_form(
    case: str, repository: Repository, tmp_path: Path
) -> None:
    """As where Sigmoid is the last operator; a softmax over them is nearly the same for every label."""
    path = tailed(tmp_path / "several.onnx", SEVERAL[case])
    with pytest.raises(UnsupportedModel, match=r"has 5 independent probabilities \(computed by Sigmoid\)"):
        import_file(path, repository, CLASSES)
    with pytest.raises(UsageError, match="--output logits: Sigmoid computes output 'logits', so it holds"):
        import_file(path, repository, CLASSES, output="logits")


@pytest.mark.parametrize("output", [None, "probabilities"])
@pytest.mark.parametrize("operator", ["Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize("outputs", [2, CLASSES])
def test_sigmoids_that_sum_to_one_by_chance_are_still_independent(
    outputs: int, operator: str, output: str | None, repository: Repository, tmp_path: Path
) -> None:
    """They do for the generated images; for others the server would refuse their sum."""
    bias = [50, *[-50] * (outputs - 1)]
    tail = [node(operator, ["s"], ["logits"])]
    path = tailed(tmp_path / "chance.onnx", tail, outputs=outputs, bias=bias)
    with pytest.raises(
        UnsupportedModel, match=rf"has {outputs} independent probabilities \(computed by {operator}\)"
    ):
        import_file(path, repository, outputs, output=output)
    with pytest.raises(UsageError, match=f"--output logits: {operator} computes output 'logits', so it"):
        import_file(path, repository, outputs, output="logits")
    assert not repository.models()


@pytest.mark.parametrize("output", [None, "logits", "probabilities"])
def test_percentages_are_refused(output: str | None, repository: Repository, tmp_path: Path) -> None:
    """No answer describes them: as logits, the largest would take all."""
    path = tailed(tmp_path / "percent.onnx", [SOFTMAX, node("Mul", ["p", "hundred"], ["logits"])])
    with pytest.raises(UnsupportedModel) as refused:
        import_file(path, repository, CLASSES, output=output)
    assert str(refused.value) == (
        "output 'logits' is a softmax that Mul changes: its 5 values sum to 100, not 1; export the model "
        "with the softmax itself as output"
    )


TOP: dict[str, tuple[Nodes, int]] = {  # with the number of values
    "of a softmax": ([SOFTMAX, node("TopK", ["p", "all"], ["logits", "indices"])], CLASSES),
    "of logits, then a softmax": (
        [
            node("TopK", ["s", "all"], ["t", "indices"]),
            node("Cast", ["t"], ["c"], to=TensorProto.FLOAT),
            node("Softmax", ["c"], ["logits"]),
        ],
        CLASSES,
    ),
    "the best three": ([SOFTMAX, node("TopK", ["p", "three"], ["logits", "indices"])], 3),
    "the best one": ([SOFTMAX, node("TopK", ["p", "axis"], ["logits", "indices"])], 1),
    "from the smallest": (
        [
            node("Shape", ["s"], ["shape"]),
            node("Gather", ["shape", "axis"], ["computed"]),
            node("TopK", ["s", "computed"], ["logits", "indices"], largest=0),
        ],
        CLASSES,
    ),
}


@pytest.mark.parametrize("output", [None, "logits", "probabilities"])
@pytest.mark.parametrize("case", TOP)
def test_values_of_topk_are_refused(
    case: str, output: str | None, repository: Repository, tmp_path: Path
) -> None:
    """They are sorted, so that every image would get the first label."""
    tail, columns = TOP[case]
    path = tailed(tmp_path / "top.onnx", tail, columns=columns)
    with pytest.raises(UnsupportedModel) as refused:
        import_file(path, repository, max(2, columns), output=output)
    assert str(refused.value) == (
        f"output 'logits' holds {counted(columns, 'value')} of TopK, sorted for each image, so that none "
        "belongs to a certain label: export the model without TopK, with the scores before it as output"
    )
    assert not repository.models()


def test_the_output_before_topk_is_named(repository: Repository, images: Pixels, tmp_path: Path) -> None:
    """If the file has it, no other export is needed."""
    path = tailed(tmp_path / "top.onnx", [node("TopK", ["s", "all"], ["logits", "indices"])])
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ("N", CLASSES)))
    onnx.save(model, path)
    with pytest.raises(UnsupportedModel, match=r": add --output-name s, the scores before TopK$"):
        import_file(path, repository, CLASSES, output_name="logits")
    bundle = import_file(path, repository, CLASSES, output_name="s").bundle
    assert np.abs(served(bundle, images) - softmax(reference(path, images, nchw)["s"])).max() < 1e-6


@pytest.mark.parametrize(
    "pooling",
    [
        [
            node("TopK", ["rows", "all"], ["t", "i"]),
            node("ReduceMean", ["t"], ["logits"], axes=[2], keepdims=0),
        ],
        [node("TopK", ["rows", "axis"], ["t", "i"]), node("Squeeze", ["t", "two"], ["logits"])],
    ],
)
def test_topk_of_the_pixels_of_each_class_is_pooling(
    pooling: Nodes, repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """Its scores are those of the labels, in their order."""
    arrays = files.weights()
    arrays["last.weight"] = arrays.pop("dense.weight").reshape(CLASSES, files.FILTERS, 1, 1)
    arrays["pixels"] = np.array([0, CLASSES, -1], np.int64)
    arrays |= {"all": CONSTANTS["all"], "axis": CONSTANTS["axis"], "two": np.array([2], np.int64)}
    nodes = [
        *files.layers()[:2],
        node("Conv", ["relu", "last.weight", "dense.bias"], ["scores"]),
        node("Reshape", ["scores", "pixels"], ["rows"]),
        *pooling,
    ]
    path = files.write(tmp_path / "pooling.onnx", nodes, arrays)
    expected = softmax(reference(path, images, nchw)["logits"])

    bundle = import_file(path, repository, CLASSES).bundle

    assert np.abs(served(bundle, images) - expected).max() < 1e-6


PROBABILITIES: dict[str, Nodes] = {
    "a clipped softmax": [SOFTMAX, CLIP],
    "a mean of two": [
        SOFTMAX,
        node("Mul", ["s", "half"], ["s2"]),
        node("Softmax", ["s2"], ["p2"], axis=1),
        node("Mean", ["p", "p2"], ["logits"]),
    ],
}


@pytest.mark.parametrize("case", PROBABILITIES)
def test_values_that_sum_to_one_are_probabilities(
    case: str, repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """Whatever operators gave them."""
    path = tailed(tmp_path / "probabilities.onnx", PROBABILITIES[case])
    expected = reference(path, images, nchw)["logits"]

    result = import_file(path, repository, CLASSES)

    assert result.foreign.scores.kind == "probabilities"
    assert np.abs(served(result.bundle, images) - expected).max() < 1e-6


def test_one_column_of_a_softmax_is_no_logit(repository: Repository, images: Pixels, tmp_path: Path) -> None:
    """Which label it is of, only the user knows; that it is a probability, the file shows."""
    tail = [SOFTMAX, node("Slice", ["p", "from1", "to1", "axis"], ["logits"])]
    path = tailed(tmp_path / "column.onnx", tail, columns=1)
    expected = both(reference(path, images, nchw)["logits"])

    with pytest.raises(UsageError, match="add --output sigmoid if a value is the probability of the second"):
        import_file(path, repository, 2)
    with pytest.raises(UsageError, match="--output probabilities: output 'logits' has 1 value"):
        import_file(path, repository, 2, output="probabilities")
    bundle = import_file(path, repository, 2, output="sigmoid").bundle
    assert np.abs(served(bundle, images) - expected).max() < 1e-6


LOGITS: dict[str, Nodes] = {
    "a dense layer": [KEEP],
    "halved": [node("Mul", ["s", "half"], ["logits"])],
    "centred": [
        node("ReduceMean", ["s"], ["mean"], axes=[1]),
        node("Sub", ["s", "mean"], ["logits"]),
    ],
    "a layer after tanh": [  # MaxViT's head
        node("Tanh", ["s"], ["t"]),
        node("Gemm", ["t", "identity"], ["logits"]),
    ],
    "a mean of two heads": [
        node("Gemm", ["features", "dense.weight"], ["s2"], transB=1),
        node("Mean", ["s", "s2"], ["logits"]),
    ],
}


@pytest.mark.parametrize("case", LOGITS)
def test_a_last_layer_gives_logits_without_a_question(
    case: str, repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """Also where they happen to be small or to have one sum: a layer can give any value."""
    path = tailed(tmp_path / "logits.onnx", LOGITS[case], scale=0.01, bias=[0.1, 0.3, 0.2, 0.9, 0.5])
    expected = softmax(reference(path, images, nchw)["logits"])

    result = import_file(path, repository, CLASSES)

    assert result.foreign.scores.kind == "logits"
    assert not any("--output" in each for each in result.foreign.assumed)
    assert np.abs(served(result.bundle, images) - expected).max() < 1e-6


def test_logits_in_the_range_of_probabilities_from_a_layer(repository: Repository, tmp_path: Path) -> None:
    """A single logit near a half, which a network of random weights gives, asks nothing."""
    path = tailed(tmp_path / "half.onnx", [KEEP], outputs=1, scale=1e-3, bias=[0.5])

    result = import_file(path, repository, 2)

    assert result.foreign.scores.kind == "logits"
    assert 0.5 < result.foreign.expected[:, 1].min() < result.foreign.expected[:, 1].max() < 0.7


def test_rows_that_sum_to_one_without_a_softmax_are_asked_for(repository: Repository, tmp_path: Path) -> None:
    """A constant layer can give them by chance; both answers fit."""
    path = tailed(tmp_path / "constant.onnx", [KEEP], scale=0, bias=[0.1, 0.2, 0.3, 0.3, 0.1])

    with pytest.raises(UsageError) as asked:
        import_file(path, repository, CLASSES)

    assert str(asked.value) == (
        "output 'logits' can be logits or probabilities: its 5 values (computed by Gemm) sum to 1 for 8 "
        "generated images, but no softmax gives them; add --output probabilities or --output logits"
    )
    for kind in ("probabilities", "logits"):
        assert import_file(path, repository, CLASSES, output=kind).foreign.scores.kind == kind


def test_logits_of_an_unknown_operator_are_an_assumption(repository: Repository, tmp_path: Path) -> None:
    """It is listed with the others, so that the user can contradict it."""
    path = tailed(tmp_path / "elu.onnx", [node("Elu", ["s"], ["logits"])])
    result = import_file(path, repository, CLASSES)
    assert result.foreign.assumed == ("--fit stretch", "--interpolation bilinear", "--output logits")
    assert "--output logits" not in import_file(path, repository, CLASSES, output="logits").foreign.assumed


@pytest.mark.parametrize(
    ("tail", "outputs", "compared"),
    [
        ([KEEP], CLASSES, "the softmax of the file's output"),
        ([KEEP], 1, "the sigmoid of the file's output"),
        ([SIGMOID, CLIP], 1, "the file's output"),
        ([SOFTMAX, CLIP], CLASSES, "the file's output"),
    ],
)
def test_the_check_says_what_it_compared(
    tail: Nodes, outputs: int, compared: str, repository: Repository, tmp_path: Path
) -> None:
    """A file of logits has no probabilities that its own could differ from."""
    result = import_file(tailed(tmp_path / "any.onnx", tail, outputs=outputs), repository, max(2, outputs))
    (line,) = (line for line in notes(result) if line.startswith("checked"))
    assert line.startswith(f"checked   probabilities differ from {compared} by ")
    assert line.endswith(" at most, for 8 generated images; batches: dynamic")


class _Examples(CalibrationDataReader):  # type: ignore[misc]
    """Images that the quantiser calibrates with."""

    def __init__(self) -> None:
        images = example_images(SIDE, SIDE, 3)
        self._batches: Iterator[dict[str, npt.NDArray[np.generic]]] = iter([{"x": nchw(images)}])

    def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """Return the next batch."""
        return next(self._batches, None)


def quantise_operators(path: Path) -> Path:
    """Quantise as ONNX Runtime does with QuantFormat.QOperator."""
    target = path.with_name("quantised.onnx")
    quantize_static(path, target, _Examples(), quant_format=QuantFormat.QOperator)
    return target


def quantise_weights(path: Path) -> Path:
    """Quantise as ONNX Runtime does for transformers: activations at run time."""
    target = path.with_name("dynamic.onnx")
    quantize_dynamic(path, target)
    return target


@pytest.mark.parametrize("quantise", [quantise_operators, quantise_weights])
@pytest.mark.parametrize("kind", ["sigmoid", "probabilities", "logits"])
def test_what_the_quantiser_writes_is_read_as_its_float_form(
    kind: str, quantise: Callable[[Path], Path], repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """The server answers with the probabilities of the quantised file itself, and asks nothing."""
    last = {"sigmoid": "Sigmoid", "probabilities": "Softmax", "logits": "Identity"}[kind]
    outputs = 1 if kind == "sigmoid" else CLASSES
    path = quantise(tailed(tmp_path / "float.onnx", [node(last, ["s"], ["logits"])], outputs=outputs))
    raw = reference(path, images, nchw)["logits"]
    expected = {"sigmoid": both(raw) if outputs == 1 else raw, "probabilities": raw, "logits": softmax(raw)}

    result = import_file(path, repository, max(2, outputs))

    assert result.foreign.scores.kind == kind
    assert not any("--output" in each for each in result.foreign.assumed)
    assert np.abs(served(result.bundle, images) - expected[kind]).max() < 1e-2


FEW_STEPS: dict[int, Nodes] = {  # by number of classes
    60: [
        SOFTMAX,
        node("QuantizeLinear", ["p", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
    ],
    40: [
        node("QuantizeLinear", ["s", "scores.scale", "scores.zero"], ["q"]),
        node(
            "QLinearSoftmax",
            ["q", "scores.scale", "scores.zero", "scale", "zero"],
            ["p"],
            domain="com.microsoft",
            axis=1,
            opset=17,
        ),
        node("DequantizeLinear", ["p", "scale", "zero"], ["logits"]),
    ],
}


@pytest.mark.parametrize("outputs", FEW_STEPS)
def test_quantised_probabilities_sum_to_one_for_every_image(
    outputs: int, repository: Repository, tmp_path: Path
) -> None:
    """The file's own sums are off by more than a server allows, for other images than the generated ones."""
    path = tailed(tmp_path / "quantised.onnx", FEW_STEPS[outputs], outputs=outputs, scale=0.5)
    random = np.random.default_rng(4)
    coloured = random.integers(0, 256, (300, 1, 1, 3)) + random.integers(-60, 60, (300, SIDE, SIDE, 3))
    images = coloured.clip(0, 255).astype(np.uint8)
    raw = reference(path, images, nchw)["logits"].astype(np.float64)  # (N, outputs)
    sums = raw.sum(axis=1, keepdims=True)

    result = import_file(path, repository, outputs)

    found = served(result.bundle, images)
    assert np.abs(sums - 1).max() > 2e-2
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-6
    assert np.abs(found - raw / sums).max() < 1e-6
    assert any("from the file's output, divided by its sum, by " in line for line in notes(result))


@pytest.mark.parametrize(("factor", "operators"), [(1, ["Identity"]), (1.0005, ["Add", "Log", "Softmax"])])
def test_only_probabilities_that_are_rounded_are_divided_by_their_sum(
    factor: float, operators: list[str], repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """Exact ones cost no operator, and stay as they are."""
    path = tailed(tmp_path / "scaled.onnx", [SOFTMAX, node("Mul", ["p", "factor"], ["logits"])])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    onnx.save(model, path)
    raw = reference(path, images, nchw)["logits"]

    bundle = import_file(path, repository, CLASSES).bundle

    nodes = [each.op_type for each in onnx.load(bundle.model_file).graph.node]
    assert nodes[-1 - len(operators) :] == ["Reshape", *operators]
    assert np.abs(served(bundle, images) - raw / raw.sum(axis=1, keepdims=True)).max() < 1e-6
