"""Values of JSON files that any program may have written: each is valid, or None."""

import math

from serving.importing.image_input import MAX_SIDE


def fraction(value: object) -> float | None:
    """Return a fraction of a side, in 0..1."""
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def numbers(value: object) -> tuple[float, ...] | None:
    """Return the finite numbers of a list."""
    if not isinstance(value, list) or not value or not all(isinstance(each, int | float) for each in value):
        return None
    try:
        found = tuple(map(float, value))
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if all(map(math.isfinite, found)) else None


def sides(height: object, width: object) -> tuple[int, int] | None:
    """Return (height, width) of an image, in pixels."""
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    return (height, width) if 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE else None
