"""What a file and the JSON files beside it say: those of Ultralytics, Hugging Face and timm."""

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from serving.importing.image_input import MAX_SIDE
from serving.importing.labels import labels_in
from serving.limited_files import read_limited

Fit = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]

_MAX_JSON_BYTES = 16 * 2**20
_PROCESSOR_FILE = "preprocessor_config.json"  # Hugging Face
_MAX_PIXEL = 255
_CONVNEXT_STRETCHED_SIDE = 384  # pixels; from there on, Hugging Face's processor for ConvNeXt does not crop
_CONFIG_FILE = "config.json"  # Hugging Face and timm
_PIL_FILTERS: Mapping[object, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known; None: it is not. `origin` names the files that say so."""

    origin: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    labels_file: str = ""  # name of the file that has them
    mean: tuple[float, ...] | None = None  # of pixels in 0..1
    std: tuple[float, ...] | None = None  # of pixels in 0..1
    size: tuple[int, int] | None = None  # height, width
    fit: Fit | None = None
    crop_fraction: float | None = None
    interpolation: Interpolation | None = None


def read_hints(path: Path, metadata: Mapping[str, str]) -> Hints:
    """Read what an ONNX file and the JSON files beside it say. Files of another form are ignored.

    Args:
        path: the ONNX file.
        metadata: of that file.
    """
    hints = Hints()
    for name, read in ((_PROCESSOR_FILE, _processor), (_CONFIG_FILE, _config)):
        values = _read_json(path.parent / name)
        found = read(values) if values else {}
        if "labels" in found:
            found["labels_file"] = name
        if found:
            hints = replace(hints, origin=(*hints.origin, name), **found)
    found = _ultralytics(metadata) if metadata.get("task") == "classify" else {}
    labels = labels_in(metadata)
    if labels:
        found |= {"labels": labels, "labels_file": path.name}
    return replace(hints, origin=(*hints.origin, path.name), **found) if found else hints


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_limited(path, _MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _ultralytics(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Ultralytics' classifiers take pixels in 0..1: the short side resized, then a centred square."""
    found: dict[str, Any] = {
        "mean": (0.0,),
        "std": (1.0,),
        "fit": "crop",
        "crop_fraction": 1.0,
        "interpolation": "bilinear",
    }
    try:
        sides = ast.literal_eval(metadata.get("imgsz", ""))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return found
    match sides:
        case [height, width] if size := _size({"height": height, "width": width}):
            return {**found, "size": size}
    return found


def _processor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's image processor. `do_rescale` divides by 255, unless the factor is another one."""
    found: dict[str, Any] = {}
    mean, std = _numbers(values.get("image_mean")), _numbers(values.get("image_std"))
    (factor,) = _numbers([values.get("rescale_factor", 1 / _MAX_PIXEL)]) or (0.0,)
    rescales = values.get("do_rescale", True) and math.isclose(factor, 1 / _MAX_PIXEL, rel_tol=1e-3)
    if values.get("do_normalize") and rescales and mean and std:
        found |= {"mean": mean, "std": std}
    elif values.get("do_normalize") is False and rescales:
        found |= {"mean": (0.0,), "std": (1.0,)}
    found |= _processor_geometry(values)
    for number, name in _PIL_FILTERS.items():
        if values.get("resample") == number:
            found["interpolation"] = name
    return found


def _processor_geometry(values: Mapping[str, Any]) -> dict[str, Any]:
    size, crop = _size(values.get("size")), _size(values.get("crop_size"))
    fraction = _fraction(values.get("crop_pct"))
    if size and fraction and size[0] < _CONVNEXT_STRETCHED_SIDE:  # ConvNeXt's and ResNet's processor
        return {"size": size, "fit": "crop", "crop_fraction": fraction}
    if size and fraction:
        return {"size": size, "fit": "stretch"}
    if values.get("do_center_crop") and crop:
        kept = crop[0] / size[0] if size and crop[0] <= size[0] else 1.0
        return {"size": crop, "fit": "crop", "crop_fraction": kept}
    is_short_side = isinstance(values.get("size"), dict) and "shortest_edge" in values["size"]
    return {"size": size, "fit": "stretch"} if size and not is_short_side else {}


def _config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's labels, and timm's `pretrained_cfg`."""
    found: dict[str, Any] = {}
    labels = labels_in(
        {"id2label": json.dumps(values.get("id2label")), "names": json.dumps(values.get("label_names"))}
    )
    if labels:
        found["labels"] = labels
    timm = values.get("pretrained_cfg")
    if not isinstance(timm, dict):
        return found
    mean, std = _numbers(timm.get("mean")), _numbers(timm.get("std"))
    if mean and std:
        found |= {"mean": mean, "std": std}
    match timm.get("input_size"):
        case [_, height, width] if size := _size({"height": height, "width": width}):
            found["size"] = size
    if fraction := _fraction(timm.get("crop_pct")):
        found |= {"fit": "crop", "crop_fraction": fraction}
    if timm.get("interpolation") in _PIL_FILTERS.values():
        found["interpolation"] = timm["interpolation"]
    return found


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def _numbers(value: object) -> tuple[float, ...] | None:
    if not isinstance(value, list) or not value or not all(isinstance(each, int | float) for each in value):
        return None
    try:
        numbers = tuple(map(float, value))
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _size(value: object) -> tuple[int, int] | None:
    """Return (height, width) from a number, or from Hugging Face's keys."""
    if isinstance(value, dict):
        sides = (
            value.get("height", value.get("shortest_edge")),
            value.get("width", value.get("shortest_edge")),
        )
    else:
        sides = (value, value)
    height, width = sides
    if (
        isinstance(height, int)
        and isinstance(width, int)
        and 0 < height <= MAX_SIDE
        and 0 < width <= MAX_SIDE
    ):
        return height, width
    return None
