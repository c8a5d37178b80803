"""Chooses how pixels are normalised: as the options say, or else the file and those beside it."""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from serving.counted import counted
from serving.errors import UsageError
from serving.importing.hints import Hints
from serving.importing.image_input import ChannelOrder, ImageInput, Normalization

Values = tuple[float, ...]
Pixels = Literal["0-1", "0-255"]

_SCALES: Mapping[Pixels, float] = {"0-1": 1.0, "0-255": 255.0}
# Of pixels in 0..1. Beyond them, the values are most often of pixels in 0..255, or the other way round.
_MAX_MEAN = 2.0
_MIN_STD, _MAX_STD = 1 / 256, 10.0  # the network takes values up to 256, or down to a tenth of a pixel

_UNKNOWN = "the file does not say how pixels are normalised"
_ASK = (
    "--mean and --std are needed: {reason}. Most networks of torchvision and timm take "
    "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225; pixels in 0..1 are --mean 0 --std 1, in -1..1 "
    "--mean 0.5 --std 0.5, in 0..255 --mean 0 --std 1 --pixels 0-255"
)


def choose_normalization(
    image: ImageInput,
    hints: Hints,
    *,
    mean: Values | None,
    std: Values | None,
    pixels: Pixels = "0-1",
    bgr: bool | None = None,
) -> Normalization:
    """Return how pixels are normalised.

    Args:
        image: the file's input.
        hints: values for options that are not given; ignored if they do not fit.
        mean: --mean, of pixels in the range of `pixels`.
        std: --std.
        pixels: --pixels.
        bgr: --bgr; None: as the hints say.

    Raises:
        UsageError: an option is missing, out of range, or contradicts the input.
    """
    if bgr and image.channels == 1:
        raise UsageError(f"--bgr: input {image.name!r} has 1 channel, grey: leave --bgr out")
    if bgr is None:  # a graph that takes uint8 does these steps itself
        bgr = hints.bgr and image.dtype != np.uint8
    order: ChannelOrder = "grey" if image.channels == 1 else "BGR" if bgr else "RGB"
    if image.dtype == np.uint8:
        if mean is not None or std is not None:
            raise UsageError(
                f"input {image.name!r} takes uint8 pixels, without normalisation: leave --mean and --std out"
            )
        return Normalization((), (), order)
    if mean is None and std is None and pixels == "0-1":
        mean, std = hints.mean, hints.std
        if mean is None or std is None or _fault(mean, std, image, pixels):
            raise UsageError(_ASK.format(reason=hints.unclear.get("mean", _UNKNOWN)))
    if mean is None and std is None:
        raise UsageError(f"--pixels {pixels} is the range of --mean and --std: add these, or leave it out")
    if mean is None or std is None:
        given, missing = ("--std", "--mean 0") if mean is None else ("--mean", "--std 1")
        raise UsageError(
            f"{given} is given alone, and belongs to {missing.split()[0]}: add it, such as {missing}"
        )
    if fault := _fault(mean, std, image, pixels):
        raise UsageError(fault)
    scale = _SCALES[pixels]
    return Normalization(_for_each(mean, scale, image), _for_each(std, scale, image), order)


def _for_each(values: Values, scale: float, image: ImageInput) -> Values:
    return tuple(value / scale for value in values) * (image.channels // len(values))


def _fault(mean: Values, std: Values, image: ImageInput, pixels: Pixels) -> str:
    """Return what is wrong with the values, and what to do; or ""."""
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, image.channels):
            return (
                f"{option} has {counted(len(values), 'value')}, input {image.name!r} has "
                f"{counted(image.channels, 'channel')}: "
                "give one value, or one for each channel"
            )
        if not all(map(math.isfinite, values)):
            return f"{option} {_listed(values)}: must be finite: use numbers such as 0.5"
    if min(std) <= 0:
        return (
            f"--std {_listed(std)}: must be above 0, because it divides pixels: --std 1 leaves them unchanged"
        )
    scale = _SCALES[pixels]
    in_range = f"of pixels in {pixels.replace('-', '..')}"
    for option, values, limit in (("--mean", mean, _MAX_MEAN * scale), ("--std", std, _MAX_STD * scale)):
        if max(map(abs, values)) > limit:
            remedy = "add --pixels 0-255" if pixels == "0-1" else f"correct {option}"
            return f"{option} {_listed(values)}: {in_range}, it is at most {limit:g}: {remedy}"
    if min(std) < _MIN_STD * scale:
        remedy = "leave --pixels out" if pixels == "0-255" else "correct --std"
        return f"--std {_listed(std)}: {in_range}, it is at least {_MIN_STD * scale:g}: {remedy}"
    return ""


def _listed(values: Values) -> str:
    return ",".join(f"{value:g}" for value in values)
