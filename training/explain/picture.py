"""One picture with its words, and grids of small images that stay sharp, pixel for pixel."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from serving.bundle.images import Pixels

_T = TypeVar("_T")
Floats = npt.NDArray[np.float32]

_DPI = 100
_GAP = 8  # pixels between tiles, as all sizes below
_LINE = 15  # height of a line of text of a narrow picture
_CHARACTER = 6.6  # mean width of a character of a narrow picture
_POINTS = 8  # size of its text

# A wide picture is scaled down to the width of a column or a phone, so its text is larger.
_NARROW = 480
_LARGEST_TEXT = 1.6  # relative to that of a narrow picture
_SMALL_SIDE, _LARGE_SIDE = 112, 144  # of a tile: of images below 64 pixels, and of photographs
_PHOTOGRAPH = 64
_POSITIVE = np.array([178, 24, 43], np.float32)  # red
_NEGATIVE = np.array([33, 102, 172], np.float32)  # blue


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with what a page says about it."""

    name: str  # of its file, without .png
    caption: str  # what it shows, and how to read it
    alt: str  # the text alternative
    png: bytes


@dataclass(frozen=True, slots=True)
class Tile:
    """A small image with a line or two of text below it."""

    pixels: Pixels  # (h, w, 1 or 3)
    text: str = ""


def draw_grid(
    rows: Sequence[Sequence[Tile | None]],
    *,
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    side: int | None = None,
) -> bytes:
    """Draw rows of tiles as a PNG on white; None leaves a gap.

    Args:
        rows: of tiles; rows may differ in length.
        columns: headings.
        names: of the rows, above them: beside them they would take a third of a phone's width.
        side: pixels of the longer side of a tile; default: 112, or 144 if the images are photographs.
    """
    tiles = [tile for row in rows for tile in row if tile is not None]
    side = side or (
        _LARGE_SIDE if max(max(tile.pixels.shape[:2]) for tile in tiles) > _PHOTOGRAPH else _SMALL_SIDE
    )
    width = max(side * tile.pixels.shape[1] // max(tile.pixels.shape[:2]) for tile in tiles)
    across = max(map(len, rows))
    text = min(max(1.0, across * (width + _GAP) / _NARROW), _LARGEST_TEXT)
    line = round(_LINE * text)  # pixels
    named = line + _GAP // 2 if any(names) else 0  # height of a row's name
    heights = [named + _row_height(row, side, line) for row in rows]
    top = line * max(map(_lines, columns), default=0) + _GAP
    size = _GAP + across * (width + _GAP), top + sum(heights)
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, facecolor="white")
    write = partial(_write, figure, size, points=_POINTS * text)
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    y = top
    for row, height, name in zip(rows, heights, [*names, *[""] * (len(rows) - len(names))], strict=True):
        write(name, _GAP, y + line / 2, bold=True, centred=False)
        y += named
        for column, tile in enumerate(row):
            if tile is None:
                continue
            x = _GAP + column * (width + _GAP)
            shown = _resized(tile.pixels, side)
            canvas[y : y + shown.shape[0], x : x + shown.shape[1]] = shown
            below = y + shown.shape[0] + 2 + line * _lines(tile.text) / 2
            write(_cut(tile.text, round(width / text)), x + shown.shape[1] / 2, below)
        y += height - named
    for column, heading in enumerate(columns):
        x = _GAP + column * (width + _GAP) + width / 2
        write(heading, x, top - _GAP / 2 - line * _lines(heading) / 2, bold=True)
    figure.figimage(canvas, 0, 0, origin="upper", zorder=-1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def as_colour(pixels: Pixels) -> Pixels:
    """(H, W, 1 or 3) -> (H, W, 3)."""
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels


def overlay(image: Pixels, heat: Floats, scale: float) -> Pixels:
    """Lay a map over a grey, pale copy of an image: red where it is positive, blue where it is negative.

    Args:
        image: (H, W, 1 or 3).
        heat: (H, W).
        scale: the absolute value of full colour.
    """
    pale = 255 - (255 - as_colour(image).mean(axis=2, keepdims=True)) * 0.55  # (H, W, 1)
    strength = np.clip(np.abs(heat) / scale, 0, 1)[..., None] ** 0.8 * 0.85
    colour = np.where(heat[..., None] > 0, _POSITIVE, _NEGATIVE)  # (H, W, 3)
    return np.asarray(np.clip(pale * (1 - strength) + colour * strength, 0, 255), np.uint8)


def signed(values: Floats, scale: float | None = None) -> Pixels:
    """(h, w) weights as (h, w, 3): white is zero, red positive, blue negative, full colour at `scale`."""
    scale = scale or float(np.abs(values).max()) or 1.0
    strength = np.clip(np.abs(values) / scale, 0, 1)[..., None]
    colour = np.where(values[..., None] > 0, _POSITIVE, _NEGATIVE)
    return np.asarray(255 - (255 - colour) * strength, np.uint8)


def stretched(values: Floats) -> Pixels:
    """(h, w, C) of any range as (h, w, C) uint8, from its own minimum to its own maximum."""
    low, high = float(values.min()), float(values.max())
    return np.asarray(np.rint((values - low) / ((high - low) or 1.0) * 255), np.uint8)


def evenly(entries: Sequence[_T], most: int) -> list[_T]:
    """At most that many entries, evenly spaced from the first to the last."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(place)] for place in np.linspace(0, len(entries) - 1, most)]


def _row_height(row: Sequence[Tile | None], side: int, line: int) -> int:
    """Height of a row of tiles with their texts."""
    present = [tile for tile in row if tile is not None]
    image: int = max(side * tile.pixels.shape[0] // max(tile.pixels.shape[:2]) for tile in present)
    return image + line * max(_lines(tile.text) for tile in present) + _GAP


def _resized(pixels: Pixels, side: int) -> Pixels:
    """Enlarge by repeating pixels, reduce by averaging: (h, w, 1 or 3) -> (H, W, 3)."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    size = max(1, side * width // longest), max(1, side * height // longest)
    method = Image.Resampling.NEAREST if longest <= side else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(as_colour(pixels)).resize(size, method))


def _write(
    figure: Figure,
    size: tuple[int, int],
    text: str,
    x: float,
    y: float,
    *,
    points: float,
    bold: bool = False,
    centred: bool = True,
) -> None:
    """Write text around a point given in pixels from the top left."""
    if text:
        figure.text(
            x / size[0],
            1 - y / size[1],
            text,
            ha="center" if centred else "left",
            va="center",
            fontsize=points,
            fontweight="bold" if bold else "normal",
            parse_math=False,  # a label may contain dollar signs
            linespacing=1.15,
        )


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _cut(text: str, width: int) -> str:
    """Shorten lines that are wider than a tile."""
    most = max(4, int((width + _GAP) / _CHARACTER) + 2)
    return "\n".join(line if len(line) <= most else line[: most - 1] + "…" for line in text.split("\n"))
