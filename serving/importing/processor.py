"""What `preprocessor_config.json` of Hugging Face's image processors says.

Steps that an import cannot do, or whose order depends on the version of transformers, leave their values out,
with the reason: the user is asked for them.
"""

import math
from collections.abc import Mapping
from typing import Any

from serving.importing.json_values import fraction, numbers, sides

_MAX_PIXEL = 255
_CONVNEXT_STRETCHED_SIDE = 384  # pixels; from there on, the processor for ConvNeXt does not crop
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_OTHER_FILTERS = {1: "Lanczos", 4: "box", 5: "Hamming"}
_KNOWN_STEPS = {
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order"),
    *("do_convert_rgb", "do_reduce_labels"),  # without effect on RGB images
}
_OTHER_GEOMETRY = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin")
_OTHER_SIZES = ("keep_aspect_ratio", "size_divisor")
_LEVIT_SCALE = 256 / 224  # LeViT's processor resizes to that multiple of its size
# Values that a class uses where the file leaves them out: first part of its name -> key -> value.
_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "EfficientNet": {"include_top": True},
    "MobileViT": {"do_flip_channel_order": True, "do_normalize": False},
}

Found = dict[str, Any]


class _UnclearError(Exception):
    """A reason why a value is not taken, for people: what the file has."""


def read_processor(values: Mapping[str, Any]) -> tuple[Found, dict[str, str]]:
    """Return fields of Hints, and for each of mean, fit and interpolation that is left out, the reason."""
    values = _with_defaults(values)
    found: Found = {"bgr": True} if values.get("do_flip_channel_order") else {}
    unclear = {}
    for name, read in (("mean", _pixels), ("fit", _geometry), ("interpolation", _interpolation)):
        try:
            found |= read(values)
        except _UnclearError as error:
            unclear[name] = str(error)
    return found, unclear


def _class_name(values: Mapping[str, Any]) -> str:
    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    return name if isinstance(name, str) else ""


def _with_defaults(values: Mapping[str, Any]) -> Mapping[str, Any]:
    for start, defaults in _DEFAULTS.items():
        if _class_name(values).startswith(start):
            return {**values, **{key: value for key, value in defaults.items() if values.get(key) is None}}
    return values


def _refuse_other_steps(values: Mapping[str, Any], *, known: set[str]) -> None:
    for key, value in values.items():
        if key.startswith("do_") and value and key not in known:
            raise _UnclearError(f"has {key}, which imports cannot do")


def _pixels(values: Mapping[str, Any]) -> Found:
    """Return mean and std of pixels in 0..1, or {} if the file does not have them."""
    _refuse_other_steps(values, known=_KNOWN_STEPS | set(_OTHER_GEOMETRY))
    scale, shift = _rescaled(values)
    mean, std = numbers(values.get("image_mean")), numbers(values.get("image_std"))
    if values.get("do_normalize") is False:
        normalized: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))
    elif values.get("do_normalize") and mean and std:
        normalized = (mean, std)
    else:
        return {}
    mean, deviations = normalized
    if values.get("do_flip_channel_order") and len({*mean}) + len({*deviations}) > 2:  # noqa: PLR2004 - 1 each
        raise _UnclearError(
            "has do_flip_channel_order and a mean or std for each channel, in an unknown order"
        )
    if values.get("include_top"):  # EfficientNet's divides once more: (pixel - mean) / std / image_std
        if std is None:
            raise _UnclearError("has include_top, which needs image_std")
        deviations = tuple(each * each for each in std) if values.get("do_normalize") else std
    return {
        "mean": tuple((each - shift) / scale for each in mean),
        "std": tuple(each / scale for each in deviations),
    }


def _rescaled(values: Mapping[str, Any]) -> tuple[float, float]:
    """Return scale and shift of pixels in 0..1: `do_rescale` keeps them, or gives -1..1 by an offset."""
    if not values.get("do_rescale", True):
        raise _UnclearError("has do_rescale false, so that its means are not of pixels in 0..1")
    (factor,) = numbers([values.get("rescale_factor", 1 / _MAX_PIXEL)]) or (0.0,)
    has_offset = bool(values.get("rescale_offset") or values.get("offset"))
    # With an offset and another factor, versions of transformers differ.
    if not math.isclose(factor, (2 if has_offset else 1) / _MAX_PIXEL, rel_tol=1e-3):
        offset = " with an offset" if has_offset else ""
        raise _UnclearError(
            f"has rescale_factor {factor:.4g}{offset}, so that its means are not of pixels in 0..1"
        )
    return (2.0, -1.0) if has_offset else (1.0, 0.0)


def _geometry(values: Mapping[str, Any]) -> Found:
    """Return size, fit and crop fraction, or {} if the file does not have them."""
    _refuse_other_geometry(values)
    resized = values.get("size")
    size = _size(resized)
    if size is None or values.get("do_resize") is False:
        return {}
    crop = _size(values.get("crop_size")) if values.get("do_center_crop") else None
    is_rectangle = isinstance(resized, dict) and "shortest_edge" not in resized
    if crop_pct := fraction(values.get("crop_pct")):
        return _scaled_and_cropped(size, crop, crop_pct, is_rectangle=is_rectangle)
    if crop:
        return _cropped(values, size, crop, is_rectangle=is_rectangle)
    if isinstance(resized, dict) and not is_rectangle:
        raise _UnclearError(f"resizes the shorter side to {size[0]} pixels and does not crop")
    return {"size": size, "fit": "stretch"}


def _refuse_other_geometry(values: Mapping[str, Any]) -> None:
    _refuse_other_steps(values, known=_KNOWN_STEPS)
    for key in _OTHER_SIZES:
        if values.get(key):
            raise _UnclearError(f"has {key}, which no --fit describes")
    if values.get("do_center_crop") and values.get("do_resize") is False:
        raise _UnclearError("has do_center_crop without do_resize, which no --fit describes")
    if values.get("do_center_crop") and not _size(values.get("crop_size")):
        raise _UnclearError("has do_center_crop without a crop_size")
    size = values.get("size")
    if isinstance(size, dict) and size and not _size(size) and values.get("do_resize") is not False:
        raise _UnclearError(f"has a size of {', '.join(map(str, size))}, which no --fit describes")


def _size(value: object) -> tuple[int, int] | None:
    """Return (height, width) from a number, or from Hugging Face's keys."""
    match value:
        case {"height": height, "width": width}:
            return sides(height, width)
        case {"shortest_edge": side, **others} if not others:
            return sides(side, side)
        case dict():
            return None
    return sides(value, value)


def _scaled_and_cropped(
    size: tuple[int, int], crop: tuple[int, int] | None, crop_pct: float, *, is_rectangle: bool
) -> Found:
    """The shorter side becomes size / crop_pct, as for ConvNeXt and ResNet; PoolFormer names the crop too."""
    if is_rectangle or crop not in (None, size):
        raise _UnclearError("has crop_pct with a size that no --fit describes")
    if crop is None and size[0] >= _CONVNEXT_STRETCHED_SIDE:
        return {"size": size, "fit": "stretch"}
    return {"size": size, "fit": "crop", "crop_fraction": crop_pct}


def _cropped(
    values: Mapping[str, Any], size: tuple[int, int], crop: tuple[int, int], *, is_rectangle: bool
) -> Found:
    """The shorter side becomes `size`, then a centred square is kept."""
    if is_rectangle and size == crop:
        return {"size": size, "fit": "stretch"}
    if not isinstance(values["size"], dict):
        raise _UnclearError("has a crop and a plain number as size, to which some processors stretch images")
    if is_rectangle or crop[0] != crop[1] or crop[0] > size[0]:
        shown = f"a size of {size[0]} x {size[1]} and a crop of {crop[0]} x {crop[1]}"
        raise _UnclearError(f"has {shown}, which no --fit describes")
    shorter = int(_LEVIT_SCALE * size[0]) if _class_name(values).startswith("Levit") else size[0]
    return {"size": crop, "fit": "crop", "crop_fraction": crop[0] / shorter}


def _interpolation(values: Mapping[str, Any]) -> Found:
    number = values.get("resample")
    if not isinstance(number, int) or values.get("do_resize") is False:
        return {}
    if number in _OTHER_FILTERS:
        raise _UnclearError(f"has resample {number}, {_OTHER_FILTERS[number]}")
    return {"interpolation": _FILTERS[number]} if number in _FILTERS else {}
