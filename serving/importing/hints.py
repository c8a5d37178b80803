"""What a file and the JSON files beside it say: those of Ultralytics, Hugging Face and timm."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from serving.importing.json_values import fraction, numbers, sides
from serving.importing.labels import labels_in
from serving.importing.processor import read_processor
from serving.limited_files import read_limited

Fit = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]

_MAX_JSON_BYTES = 16 * 2**20
_PROCESSOR_FILE = "preprocessor_config.json"  # Hugging Face
_CONFIG_FILE = "config.json"  # Hugging Face and timm
_INTERPOLATIONS = get_args(Interpolation)

Found = dict[str, Any]


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
    bgr: bool = False  # whether the network takes blue first
    unclear: Mapping[str, str] = field(
        default_factory=dict
    )  # field above -> why a file's value was not taken


def read_hints(path: Path, metadata: Mapping[str, str]) -> Hints:
    """Read what an ONNX file and the JSON files beside it say. Files of another form are ignored.

    Args:
        path: the ONNX file.
        metadata: of that file.
    """
    hints = Hints()
    for name, read in ((_PROCESSOR_FILE, read_processor), (_CONFIG_FILE, _config)):
        found, unclear = read(_read_json(path.parent / name))
        if "labels" in found:
            found["labels_file"] = name
        if found:
            hints = replace(hints, origin=(*hints.origin, name), **found)
        reasons = {field: f"{name} {reason}" for field, reason in unclear.items()}
        hints = replace(hints, unclear={**hints.unclear, **reasons})
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
        imgsz = ast.literal_eval(metadata.get("imgsz", ""))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return found
    match imgsz:
        case [height, width] if size := sides(height, width):
            return {**found, "size": size}
    return found


def _config(values: Mapping[str, Any]) -> tuple[Found, dict[str, str]]:
    """Hugging Face's labels, and timm's `pretrained_cfg`; and reasons, as `read_processor` returns them."""
    found: Found = {}
    labels = labels_in(
        {"id2label": json.dumps(values.get("id2label")), "names": json.dumps(values.get("label_names"))}
    )
    if labels:
        found["labels"] = labels
    timm = values.get("pretrained_cfg")
    if not isinstance(timm, dict):
        return found, {}
    mean, std = numbers(timm.get("mean")), numbers(timm.get("std"))
    if mean and std:
        found |= {"mean": mean, "std": std}
    match timm.get("input_size"):
        case [_, height, width] if size := sides(height, width):
            found["size"] = size
    unclear = {}
    match timm.get("crop_mode") or "center", fraction(timm.get("crop_pct")):
        case "center", float(kept):
            found |= {"fit": "crop", "crop_fraction": kept}
        case "squash", 1.0:
            found["fit"] = "stretch"
        case str(mode), _ if mode != "center":
            unclear["fit"] = (
                f"has crop_mode {mode} and crop_pct {timm.get('crop_pct')}, which no --fit describes"
            )
    interpolation = timm.get("interpolation")
    if interpolation in _INTERPOLATIONS:
        found["interpolation"] = interpolation
    elif isinstance(interpolation, str) and interpolation:
        unclear["interpolation"] = f"has interpolation {interpolation}"
    return found, unclear
