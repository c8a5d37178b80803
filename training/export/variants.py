"""Creates INT8 and FP16 variants of an exported file, and keeps those with nearly the same predictions."""

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from serving.bundle import Variant, variant_file
from serving.bundle.images import Pixels
from training.data.splits import Split
from training.data.storage.disk_images import Images
from training.evaluation.evaluate import score
from training.evaluation.onnx_session import Floats, open_session, run
from training.export.fp16_range import FP16_MAX, RANGE_IMAGES, largest_magnitude
from training.export.variant_report import VariantReport
from training.recipe.sections import VariantRecipe

Precision = Literal["int8", "fp16"]

# Operators to quantize: those with weights, and those that pass values through. The others stay in FP32.
_QUANTIZED_OPS = (
    *("Conv", "Gemm", "MatMul", "Add", "Concat"),
    *("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
)
_WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
_CALIBRATION_BATCH = 16
# Tolerance of FP16's golden probabilities on a GPU. A CPU computes in FP32, which shows only the rounding of
# the weights. Rounding every tensor of SqueezeNet 1.1 changes probabilities by 4.4e-3. Random rounding errors
# grow with the square root of the depth: twice as much for a network four times as deep. Another factor of
# two allows for accumulation in FP16.
_FP16_TOLERANCE = 2e-2
_KEPT_REASON = {
    "int8": "as accurate as the exported file",
    "fp16": "not proven in FP16: this machine computes it in FP32, a server proves it on its GPU",
}
_TIMED_BATCHES = (1, 32)
_TIMED_RUNS = 7
_IMAGES_PER_RUN = 32  # long enough for the smallest network to exceed the clock's resolution


def make_variant(
    precision: Precision,
    model_file: Path,
    *,
    calibration: Pixels,
    validation: Split,
    test: Split,
    labels: Sequence[str],
    recipe: VariantRecipe,
) -> VariantReport:
    """Write model.int8.onnx or model.fp16.onnx next to the exported file, and delete it if it fails a limit.

    Args:
        precision: precision of weights and activations.
        model_file: the exported file, after its proof.
        calibration: (N, H, W, C) uint8 training images; they and some test images determine value ranges.
        validation: decides whether the variant is kept; if empty, the test split decides.
        test: both files are evaluated on it for the report.
        labels: K names.
        recipe: limits of the variant.
    """
    path = model_file.with_name(variant_file(precision))
    path.unlink(missing_ok=True)
    if precision == "int8" and not len(calibration):
        return VariantReport(precision=precision, kept=False, reason="no training images to calibrate on")
    try:
        with _quiet():
            if precision == "int8":
                _quantize(model_file, path, calibration)
            else:
                overflow = _fp16_overflow(model_file, _range_images(calibration, test.images), recipe)
                if overflow:
                    return VariantReport(precision=precision, kept=False, reason=overflow)
                _convert_to_fp16(model_file, path)
            exported, variant = open_session(model_file), open_session(path)
    except OSError:  # a full disk says nothing about the variant
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # noqa: BLE001 - the tools raise any error; the exported file is unchanged
        path.unlink(missing_ok=True)
        return VariantReport(
            precision=precision, kept=False, reason=f"conversion failed: {_first_line(error)}"
        )
    deciding = validation if len(validation) else test
    report = _evaluate(precision, (exported, variant), deciding, test, labels, recipe)
    if not report.kept:
        path.unlink()
    return report


def _evaluate(  # noqa: PLR0917 - the comparison needs both splits
    precision: Precision,
    sessions: tuple[Any, Any],
    deciding: Split,
    test: Split,
    labels: Sequence[str],
    recipe: VariantRecipe,
) -> VariantReport:
    drop, kept_labels = _compare(sessions, deciding)
    exported, variant = (run(session, test.images)[0] for session in sessions)  # (N, K) each
    after = score(variant, test.labels, labels).evaluation
    same = _share_of_same_labels(exported, variant)
    speedup = {f"batch {batch}": _speedup(sessions, test.images, batch) for batch in _TIMED_BATCHES}
    tolerance = _golden_tolerance(precision, exported, variant)
    reasons = []
    if drop > recipe.max_accuracy_drop:
        reasons.append(
            f"accuracy drop {drop:.2%}, maximum {recipe.max_accuracy_drop:.2%} (variants.max_accuracy_drop)"
        )
    if kept_labels < recipe.min_same_labels:
        reasons.append(
            f"equal labels {kept_labels:.2%}, minimum {recipe.min_same_labels:.2%} (variants.min_same_labels)"
        )
    if precision == "int8" and min(speedup.values()) < recipe.min_int8_speedup:
        reasons.append(
            f"speedup {min(speedup.values()):.2f}, minimum {recipe.min_int8_speedup:.2f} "
            "(variants.min_int8_speedup)"
        )
    return VariantReport(
        precision=precision,
        kept=not reasons,
        reason="; ".join(reasons) or _KEPT_REASON[precision],
        accuracy=after.accuracy,
        same_labels=same,
        variant=Variant(evaluation=after, same_labels=same, golden_tolerance=tolerance),
        speedup=speedup,
    )


def _compare(sessions: tuple[Any, Any], split: Split) -> tuple[float, float]:
    """Return the variant's loss of accuracy on a split, and the share of images that keep their label."""
    exported, variant = (run(session, split.images)[0] for session in sessions)  # (N, K) each
    before, after = (float((found.argmax(axis=1) == split.labels).mean()) for found in (exported, variant))
    return before - after, _share_of_same_labels(exported, variant)


def _share_of_same_labels(exported: Floats, variant: Floats) -> float:
    return float((exported.argmax(axis=1) == variant.argmax(axis=1)).mean())


def _golden_tolerance(precision: Precision, exported: Floats, variant: Floats) -> float:
    """Return the golden tolerance: 1.5 times the largest measured difference, plus 2e-3."""
    farthest = min(1.0, 1.5 * float(np.abs(exported - variant).max()) + 2e-3)
    return max(farthest, _FP16_TOLERANCE) if precision == "fp16" else farthest


def _range_images(calibration: Pixels, test: Images) -> tuple[Pixels, Pixels]:
    """Return at most RANGE_IMAGES images, up to half of them training images."""
    training = _evenly_spaced(calibration, RANGE_IMAGES // 2)
    return training, _evenly_spaced(test, RANGE_IMAGES - len(training))


def _evenly_spaced(images: Images, most: int) -> Pixels:
    """Return at most this many images, evenly spaced."""
    count = min(len(images), most)
    return images[np.linspace(0, len(images) - 1, count).astype(np.intp)]


def _fp16_overflow(model_file: Path, images: Iterable[Pixels], recipe: VariantRecipe) -> str:
    """Return why the values of a network are too large for FP16; empty if they are not."""
    largest = largest_magnitude(model_file, images)
    limit = recipe.max_fp16_range * FP16_MAX
    if largest.value <= limit:
        return ""
    return (
        f"tensor {largest.tensor!r} reaches {largest.value:,.0f} in FP32, maximum {limit:,.0f}: "
        f"{recipe.max_fp16_range:.0%} of FP16's largest number, {FP16_MAX:,.0f} (variants.max_fp16_range)"
    )


def _speedup(sessions: tuple[Any, Any], images: Images, batch: int) -> float:
    """Return the CPU time of the first session divided by the second's: medians of alternating runs."""
    feed = {"image": np.resize(images[:batch], (batch, *images.shape[1:]))}
    times = np.empty((_TIMED_RUNS + 1, len(sessions)))
    for turn in range(len(times)):
        for which, session in enumerate(sessions):
            began_s = time.process_time()
            for _ in range(_IMAGES_PER_RUN // batch):
                session.run(["probabilities"], feed)
            times[turn, which] = time.process_time() - began_s
    exported, variant = np.median(times[1:], axis=0)  # the first run allocates memory
    return round(float(exported / variant), 2)


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Feeds training images in small batches to ONNX Runtime's quantizer."""

    def __init__(self, images: Pixels) -> None:
        starts = range(0, len(images), _CALIBRATION_BATCH)
        self._batches = iter([{"image": images[start : start + _CALIBRATION_BATCH]} for start in starts])

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch; None at the end."""
        return next(self._batches, None)


def _quantize(model_file: Path, path: Path, calibration: Pixels) -> None:
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model_file), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        first = next(i for i, node in enumerate(nodes) if node.op_type in _WEIGHTED_OPS)
        quantize_static(
            str(prepared),
            str(path),
            _CalibrationImages(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED_OPS),
            # Before the first filters, the image is only scaled: quantizing it again would lose precision.
            nodes_to_exclude=[node.name for node in nodes[:first]],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _convert_to_fp16(model_file: Path, path: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(model_file), keep_io_types=True), path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the conversion tools; their results are measured afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
