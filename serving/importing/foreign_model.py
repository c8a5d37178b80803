"""What is known about a foreign model before it is wrapped: read, completed by the settings, and run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from serving.counted import counted
from serving.errors import UnsupportedModel, UsageError
from serving.importing.embedding import find_embedding
from serving.importing.example_images import example_images
from serving.importing.hints import Hints, read_hints
from serving.importing.image_input import ImageInput, Normalization, describe_input, to_tensor
from serving.importing.labels import check_count, read_labels
from serving.importing.normalization import choose_normalization
from serving.importing.score_kind import describe_scores
from serving.importing.scores import Scores, choose_output
from serving.importing.sessions import open_session
from serving.importing.settings import ImportSettings
from serving.importing.source import Source, first_line, read_source
from serving.importing.wrap import Features

# Option -> what the user is asked for, if a file beside the model has a value that cannot be taken.
_CHOICES = {
    "fit": "--fit stretch, --fit crop with --crop-fraction, or --fit pad, whichever is nearest",
    "interpolation": "--interpolation bilinear, bicubic or nearest, whichever is nearest",
}

Floats64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A foreign classifier, understood."""

    source: Source
    image: ImageInput
    normalization: Normalization
    geometry: Geometry
    scores: Scores
    scores_dtype: np.dtype[np.generic]
    features: Features
    has_embedding: bool  # whether `features` come before the last layer
    labels: tuple[str, ...]
    labels_origin: str  # option or file
    examples: Pixels  # (N, H, W, C) uint8
    expected: Floats64  # (N, K): the file's probabilities for the examples, computed without any wrapping
    assumed: tuple[str, ...]  # options that neither the file nor the operator determined
    origin: tuple[str, ...]  # files that determined others


def understand(path: Path, settings: ImportSettings) -> ForeignModel:
    """Read a file, complete it by the settings, and run it on examples.

    Raises:
        UsageError: an option is missing or contradicts the file; names the option.
        UnsupportedModel: the file is damaged, or not a classifier of images.
    """
    source = read_source(path)
    hints = read_hints(path, source.metadata)
    graph = source.model.graph
    size = settings.size or (hints.size if _is_open(graph) else None)
    image = describe_input(graph, layout=settings.layout, size=size)
    normalization = choose_normalization(
        image, hints, mean=settings.mean, std=settings.std, pixels=settings.pixels, bgr=settings.bgr
    )
    geometry, assumed = _geometry(image, settings, hints)
    labels, labels_origin = _labels(settings, hints, path)
    examples = example_images(image.height, image.width, image.channels)
    if not graph.output:
        raise UnsupportedModel(f"{path} has no outputs: export it with its logits as output")
    found = _run(source, image, normalization, examples)
    name = choose_output(
        {value.name: found[value.name] for value in graph.output},
        images=len(examples),
        classes=len(labels) if labels else None,
        wanted=settings.output_name,
    )
    raw: Any = found[name]
    scores, is_assumed = describe_scores(graph, name, raw, wanted=settings.output, coarse=source.is_coarse)
    if is_assumed:
        assumed = (*assumed, f"--output {scores.kind}")
    if labels is None:
        raise UsageError(
            f"--labels is needed: the file does not name the {scores.classes:,} classes of output {name!r}; "
            "name a text file with one label in each line, in the order of the output"
        )
    check_count(labels, scores.classes, name, labels_origin)
    features, has_embedding = _features(graph, name, found)
    return ForeignModel(
        source=source,
        image=image,
        normalization=normalization,
        geometry=geometry,
        scores=scores,
        scores_dtype=raw.dtype,
        features=features,
        has_embedding=has_embedding,
        labels=labels,
        labels_origin=labels_origin,
        examples=examples,
        expected=scores.probabilities(raw),
        assumed=assumed,
        origin=hints.origin,
    )


def _is_open(graph: onnx.GraphProto) -> bool:
    """Whether the file leaves a side of the image open."""
    return any(not axis.dim_value for value in graph.input for axis in value.type.tensor_type.shape.dim[1:])


def _geometry(image: ImageInput, settings: ImportSettings, hints: Hints) -> tuple[Geometry, tuple[str, ...]]:
    """Return the geometry, and the options that neither the user nor the file determined."""
    chosen: dict[str, Any] = {}
    for name in ("fit", "crop_fraction", "interpolation"):
        value = getattr(settings, name)
        value = value if value is not None else getattr(hints, name)
        if value is not None:
            chosen[name] = value
    _refuse_unclear(hints, chosen)
    geometry = Geometry(height=image.height, width=image.width, channels=image.channels, **chosen)
    if settings.crop_fraction is not None and geometry.fit != "crop":
        raise UsageError(
            f"--crop-fraction {settings.crop_fraction:g} has no effect without --fit crop: add it"
        )
    assumed = [name for name in ("fit", "interpolation") if name not in chosen]
    return geometry, tuple(f"--{name} {getattr(geometry, name)}" for name in assumed)


def _refuse_unclear(hints: Hints, chosen: Mapping[str, Any]) -> None:
    """Ask for options that a file beside the model names in a form that does not fit.

    Raises:
        UsageError: there is one.
    """
    for name, values in _CHOICES.items():
        if name not in chosen and name in hints.unclear:
            raise UsageError(f"--{name} is needed: {hints.unclear[name]}; add {values}")


def _labels(settings: ImportSettings, hints: Hints, path: Path) -> tuple[tuple[str, ...] | None, str]:
    if settings.labels is not None:
        return read_labels(settings.labels), f"--labels {settings.labels}"
    return hints.labels, str(path.parent / hints.labels_file)


def _run(
    source: Source, image: ImageInput, normalization: Normalization, examples: Pixels
) -> Mapping[str, object]:
    """Return what the file itself gives for the examples: its outputs, and features before its last layer."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    outputs = [value.name for value in model.graph.output]
    extra = {find_embedding(model.graph, name) for name in outputs} - {None, *outputs}
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in sorted(filter(None, extra))
    )
    session = open_session(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    tensor = to_tensor(examples, image, normalization)
    batch = image.batch or 1
    parts = []
    for start in range(0, len(examples), batch):
        images = np.resize(
            tensor[start : start + batch], (batch, *image.shape)
        )  # the last one repeats images
        try:
            parts.append(session.run(names, {image.name: images}))
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise UnsupportedModel(
                f"the model fails on {counted(batch, 'image')} of {image.height} x {image.width} pixels: "
                f"{first_line(error)}; check --size and --layout"
            ) from error
    return {
        name: _joined([part[at] for part in parts], batch, len(examples)) for at, name in enumerate(names)
    }


def _joined(parts: list[Any], batch: int, images: int) -> object:
    """Return the rows of all images; of an output without a row for each image, what the first batch gave."""
    first = parts[0]
    if not isinstance(first, np.ndarray) or first.shape[:1] != (batch,):
        return first
    if len({part.shape for part in parts}) > 1:
        return first
    return np.concatenate(parts)[:images]


def _features(graph: onnx.GraphProto, output: str, found: Mapping[str, object]) -> tuple[Features, bool]:
    """Return the features before the last layer, or else the output itself."""
    name = find_embedding(graph, output)
    value = found.get(name or "")
    fits = (
        isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and (value.ndim in (2, 4) or value[0].size == max(value.shape[1:], default=0))
    )
    if not name or not fits or not isinstance(value, np.ndarray) or not np.isfinite(value).all():
        name, value = output, found[output]
    if not isinstance(value, np.ndarray):
        raise TypeError(f"output {output!r} is not an array. This is a bug.")
    shape = value.shape[1:] if value.ndim == 4 and name != output else (value[0].size,)  # noqa: PLR2004 - maps
    return Features(name, tuple(int(side) for side in shape), value.dtype), name != output
