"""The images of the data that the page shows: each is encoded once. Also draws galleries as files."""

import io
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from serving.bundle.images import Pixels
from training.data.splits import Split
from training.report.blocks import AlbumImage, Gallery

_LARGEST_SIDE = 224  # pixels; larger images are scaled down
_LARGEST_PIXELATED = 64  # pixels; larger images are smoothed when they are enlarged, and encoded as JPEG
_JPEG_QUALITY = 82

_THUMBNAIL = 144  # pixels, on a sheet
_LINE = 17  # pixels, height of a line of text
_GAP = 10
_SHEET_COLUMNS = 6
_INK, _RED, _GREEN = "#1c2733", "#b3261e", "#1a7f4b"


@dataclass(slots=True)
class Album:
    """Collects images by split and position."""

    images: dict[str, AlbumImage] = field(default_factory=dict)
    _pixels: dict[str, Pixels] = field(default_factory=dict)

    def add(self, split: str, source: Split, index: int) -> str:
        """Add an image of a split, and return its key."""
        return self.add_pixels(f"{split}-{index}", source.images[index])

    def add_pixels(self, key: str, pixels: Pixels) -> str:
        """Add an image, (H, W, C) uint8, and return its key."""
        if key not in self.images:
            self._pixels[key] = pixels
            self.images[key] = encode(pixels)
        return key

    def sheet(self, gallery: Gallery) -> bytes:
        """Draw a gallery as one PNG with its captions."""
        columns = gallery.columns or _SHEET_COLUMNS
        lines = max((len(photo.lines) for photo in gallery.photos), default=0)
        wide, high = _THUMBNAIL + _GAP, _THUMBNAIL + _LINE * lines + _GAP
        rows = -(-len(gallery.photos) // columns)
        sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
        pen, font = ImageDraw.Draw(sheet), _font()
        for number, photo in enumerate(gallery.photos):
            row, column = divmod(number, columns)
            left, top = _GAP + column * wide, _GAP + row * high
            picture = _picture(self._pixels[photo.image]).convert("RGB")
            smooth = Image.Resampling.BICUBIC
            small = max(picture.size) <= _LARGEST_PIXELATED
            scale = _THUMBNAIL / max(picture.size)
            size = tuple(max(1, round(side * scale)) for side in picture.size)
            sheet.paste(
                picture.resize((size[0], size[1]), Image.Resampling.NEAREST if small else smooth), (left, top)
            )
            colour = {"plain": _INK, "good": _GREEN, "bad": _RED}[photo.tone]
            for place, line in enumerate(photo.lines):
                text = _shortened(line, font)
                pen.text((left, top + _THUMBNAIL + 2 + place * _LINE), text, fill=colour, font=font)
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        return buffer.getvalue()


def encode(pixels: Pixels) -> AlbumImage:
    """Encode an image for the page: PNG up to 64 pixels, else JPEG of at most 224 pixels."""
    picture = _picture(pixels)
    small = max(picture.size) <= _LARGEST_PIXELATED
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    form: Literal["png", "jpeg"] = "png" if small else "jpeg"
    picture.save(buffer, form.upper(), quality=_JPEG_QUALITY, optimize=True)
    return AlbumImage(buffer.getvalue(), form, picture.width, picture.height, pixelated=small)


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib's, because Pillow's own has Latin letters only.
    return ImageFont.truetype(str(resources.files(mpl) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)


def _shortened(line: str, font: ImageFont.FreeTypeFont) -> str:
    line = line.replace("\n", " ")
    if font.getlength(line) <= _THUMBNAIL:
        return line
    while line and font.getlength(line + "…") > _THUMBNAIL:
        line = line[:-1]
    return line + "…"
