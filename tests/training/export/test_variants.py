"""INT8 and FP16 variants: kept if their predictions are nearly the same, otherwise rejected with a reason."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits

from serving.bundle import Bundle, Precision
from training.data.splits import Split
from training.data.storage.disk_images import Images
from training.evaluation.onnx_session import open_session, run
from training.export.fp16_range import TensorMagnitude, largest_magnitude
from training.export.variant_report import VariantReport
from training.export.variants import _range_images, make_variant
from training.recipe import resolve
from training.recipe.sections import VariantRecipe
from training.run.job import Job, train_and_evaluate

LABELS = tuple("0123456789")
ANY_SPEED = {"min_int8_speedup": 1e-3}


@pytest.fixture(scope="module")
def digits() -> Split:
    """Real digits at 28x28."""
    scans = load_digits()
    images = np.kron(scans.images * 15.9, np.ones((4, 4)))[:, 2:30, 2:30, np.newaxis].astype(np.uint8)
    return Split(images, scans.target.astype(np.int64), tuple(map(str, range(len(images)))))


@pytest.fixture
def model_file(digits_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the digits' exported file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(digits_bundle.model_file.read_bytes())
    return path


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_good_variant_is_kept_and_measured(
    precision: Precision, model_file: Path, digits_bundle: Bundle
) -> None:
    """It is smaller, has the same inputs and outputs, and its scores match its file."""
    golden = digits_bundle.golden()
    truth = golden.probabilities.argmax(axis=1).astype(np.int64)
    test = Split(golden.images, truth, tuple(map(str, range(len(truth)))))
    recipe = VariantRecipe.model_validate({**ANY_SPEED, "min_same_labels": 0.9, "max_accuracy_drop": 0.1})
    report = make_variant(
        precision,
        model_file,
        calibration=golden.images,
        validation=test,
        test=test,
        labels=LABELS,
        recipe=recipe,
    )
    assert report.kept, report.reason
    path = model_file.with_name(f"model.{precision}.onnx")
    assert path.stat().st_size < 0.6 * model_file.stat().st_size
    probabilities, embedding = run(open_session(path), test.images)
    assert probabilities.dtype == embedding.dtype == np.float32
    assert report.variant is not None
    assert report.same_labels == (probabilities.argmax(axis=1) == truth).mean()
    assert report.variant.evaluation.correct == (probabilities.argmax(axis=1) == truth).sum()
    assert golden.largest_difference(probabilities) <= report.variant.golden_tolerance
    assert set(report.speedup) == {"batch 1", "batch 32"}
    stored = {onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}
    assert {"int8": "INT8", "fp16": "FLOAT16"}[precision] in stored


def test_fp16_is_rejected_if_values_approach_its_maximum(model_file: Path, digits: Split) -> None:
    """The network is accurate in FP32; the reason names the tensor, its value and the limit."""
    _stretch(model_file, digits.images, 3.4e5)
    report = _halved(model_file, digits)
    assert not report.kept
    assert not model_file.with_name("model.fp16.onnx").exists()
    assert report.reason.startswith("tensor 'stretched' reaches 340,000 in FP32, maximum 16,376: ")
    assert "25% of FP16's largest number, 65,504" in report.summary_line()


def test_fp16_is_kept_if_all_values_are_in_range(model_file: Path, digits: Split) -> None:
    """Just below the limit of 16,376."""
    _stretch(model_file, digits.images, 16_000.0)
    assert _halved(model_file, digits).kept
    assert model_file.with_name("model.fp16.onnx").exists()


def test_the_range_of_fp16_is_a_setting(model_file: Path, digits: Split) -> None:
    """`variants.max_fp16_range` moves the limit."""
    _stretch(model_file, digits.images, 60_000.0)
    assert not _halved(model_file, digits, max_fp16_range=0.5).kept
    assert _halved(model_file, digits, max_fp16_range=1.0).kept


def test_a_kept_fp16_is_not_called_proven(model_file: Path, digits: Split) -> None:
    """Nothing here computes in FP16: the tolerance is fixed, not derived from FP32."""
    report = _halved(model_file, digits)
    assert report.variant is not None
    assert report.variant.golden_tolerance == 2e-2
    assert report.reason.startswith("not proven in FP16")
    assert report.summary_line().startswith("kept, not proven in FP16: ")


def test_a_large_weight_counts(model_file: Path, digits: Split) -> None:
    """A weight that is only multiplied by zeros shows in no activation."""
    model = onnx.load(model_file)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -7e4], np.float32), "heavy"))
    onnx.save(model, model_file)
    assert largest_magnitude(model_file, [digits.images[:3]]) == TensorMagnitude("heavy", 7e4)


def test_one_image_with_nan_among_good_ones_counts(tmp_path: Path) -> None:
    """Neither other images of its batch nor later batches hide it."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
        make("Sub", ["pixels", "seven"], ["shifted"]),
        make("Sqrt", ["shifted"], ["root"]),  # NaN of a pixel below seven
        make("Mul", ["root", "root"], ["embedding"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "root",
        [value("image", onnx.TensorProto.UINT8, ["batch", 4, 4, 1])],
        [value("embedding", onnx.TensorProto.FLOAT, ["batch", 4, 4, 1])],
        [onnx.numpy_helper.from_array(np.array(7, np.float32), "seven")],
    )
    file = tmp_path / "model.onnx"
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), file)
    images = np.full((12, 4, 4, 1), 107, np.uint8)
    assert largest_magnitude(file, [images]).value == 107
    images[5, 2, 1] = 3
    assert largest_magnitude(file, [images]) == TensorMagnitude("root", np.inf)


def test_the_range_is_measured_on_few_images_of_both_splits() -> None:
    """Every node is measured on every image: 512 images took minutes."""
    images = np.zeros((100, 2, 2, 1), np.uint8)
    assert [len(part) for part in _range_images(images, images)] == [32, 32]
    assert [len(part) for part in _range_images(images[:0], images)] == [0, 64]
    assert [len(part) for part in _range_images(images[:5], images[:9])] == [5, 9]


def test_measuring_the_range_without_images_fails(model_file: Path, digits: Split) -> None:
    """Without images nothing is known about activations."""
    with pytest.raises(ValueError, match="no images"):
        largest_magnitude(model_file, [digits.images[:0]])


def test_a_variant_that_changes_labels_is_rejected_with_its_numbers(model_file: Path, digits: Split) -> None:
    """INT8 calibrated on black images has wrong ranges: the reason has the value and the limit."""
    recipe = VariantRecipe.model_validate(ANY_SPEED)
    black = np.zeros((8, 28, 28, 1), np.uint8)
    report = make_variant(
        "int8", model_file, calibration=black, validation=digits, test=digits, labels=LABELS, recipe=recipe
    )
    assert not report.kept
    assert "minimum 99.00% (variants.min_same_labels)" in report.reason
    assert not model_file.with_name("model.int8.onnx").exists()
    assert report.summary_line().startswith("rejected: ")


def test_the_validation_split_decides_and_the_test_split_is_reported(model_file: Path, digits: Split) -> None:
    """A file that agrees on validation is kept, and the test split's figures stand beside it."""
    recipe = VariantRecipe.model_validate({**ANY_SPEED, "max_accuracy_drop": 1, "min_same_labels": 0.9})
    dark = Split(digits.images[:] // 16, digits.labels, digits.names)  # int8 then clips what is bright
    splits = {"validation": dark, "test": digits}
    report = make_variant(
        "int8", model_file, calibration=dark.images[:], **splits, labels=LABELS, recipe=recipe
    )
    assert report.kept, report.reason
    assert report.same_labels is not None
    assert report.same_labels < recipe.min_same_labels
    splits = {"validation": digits.take(slice(0)), "test": digits}
    report = make_variant(
        "int8", model_file, calibration=dark.images[:], **splits, labels=LABELS, recipe=recipe
    )
    assert not report.kept  # without a validation split the test split decides


def test_a_slow_int8_is_rejected(model_file: Path, digits: Split) -> None:
    """No variant is a thousand times faster: the reason names both numbers."""
    recipe = VariantRecipe.model_validate(
        {"min_int8_speedup": 1000, "max_accuracy_drop": 1, "min_same_labels": 0}
    )
    few = digits.take(slice(64))
    report = make_variant(
        "int8", model_file, calibration=few.images[:], validation=few, test=few, labels=LABELS, recipe=recipe
    )
    assert not report.kept
    assert "minimum 1000.00 (variants.min_int8_speedup)" in report.reason


def test_without_training_images_there_is_no_int8(model_file: Path, digits: Split) -> None:
    """A network that is published without training has no images to calibrate on."""
    none = digits.images[:0]
    report = make_variant(
        "int8",
        model_file,
        calibration=none,
        validation=digits,
        test=digits,
        labels=LABELS,
        recipe=VariantRecipe(),
    )
    assert (report.kept, report.reason) == (False, "no training images to calibrate on")


def test_a_failed_conversion_does_not_fail_the_run(tmp_path: Path, digits: Split) -> None:
    """The tool's error is the reason."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    report = make_variant(
        "fp16",
        tmp_path / "model.onnx",
        calibration=digits.images[:],
        validation=digits,
        test=digits,
        labels=LABELS,
        recipe=VariantRecipe(),
    )
    assert not report.kept
    assert report.reason.startswith("conversion failed: ")


def test_kept_variants_are_published_with_digests(job: Job) -> None:
    """Their files are beside model.onnx, and the manifest and the report have their scores."""
    overrides = ["training.epochs=3", "variants.min_int8_speedup=1e-3", "variants.min_same_labels=0.9"]
    recipe = resolve(
        "lenet5-digits", [*overrides, "variants.max_accuracy_drop=0.1", "gates.min_accuracy=0.9"]
    )
    summary = train_and_evaluate(recipe, replace(job, model="digits"))
    assert summary.verdict == "published", summary.refusal
    manifest = job.repository.read("digits", 1).manifest
    assert set(manifest.variants) == {"int8", "fp16"}
    assert {"model.int8.onnx", "model.fp16.onnx"} <= set(manifest.files)
    assert manifest.variants["int8"].evaluation.images == manifest.measured().images
    assert "kept: " in (job.repository.folder("digits", 1) / "report" / "report.html").read_text()


def _halved(model_file: Path, digits: Split, **settings: float) -> VariantReport:
    """The FP16 variant, with all other limits off."""
    recipe = VariantRecipe.model_validate({"max_accuracy_drop": 1, "min_same_labels": 0, **settings})
    few = digits.take(slice(32))  # all of them measure the range
    return make_variant(
        "fp16", model_file, calibration=few.images[:], validation=few, test=few, labels=LABELS, recipe=recipe
    )


def _stretch(model_file: Path, images: Images, reaches: float) -> None:
    """Scale the embedding up until its largest value on these images is `reaches`, and down again."""
    largest = np.abs(run(open_session(model_file), images[:32])[1]).max()
    factor = np.array(reaches / largest, np.float32)
    model = onnx.load(model_file)
    graph = model.graph
    made = next(node for node in graph.node if "embedding" in node.output)
    made.output[list(made.output).index("embedding")] = "inside"
    for node in graph.node:
        node.input[:] = ["shrunk" if name == "embedding" else name for name in node.input]
    after = list(graph.node).index(made) + 1
    up = onnx.helper.make_node("Mul", ["inside", "factor"], ["stretched"])
    down = onnx.helper.make_node("Div", ["stretched", "factor"], ["shrunk"])
    out = onnx.helper.make_node("Identity", ["shrunk"], ["embedding"])
    for node in (out, down, up):
        graph.node.insert(after, node)
    graph.initializer.append(onnx.numpy_helper.from_array(factor, "factor"))
    onnx.save(model, model_file)
