"""What the operator says about a foreign model. Everything else is read from its file."""

from dataclasses import dataclass
from pathlib import Path

from serving.importing.hints import Fit, Interpolation
from serving.importing.image_input import Layout
from serving.importing.normalization import Pixels
from serving.importing.scores import Kind


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """The options of `lenserve models import`; None: read, or taken from the manifest's defaults."""

    labels: Path | None = None
    mean: tuple[float, ...] | None = None  # of pixels in the range of `pixels`
    std: tuple[float, ...] | None = None
    pixels: Pixels = "0-1"
    bgr: bool | None = None
    size: tuple[int, int] | None = None  # height, width
    fit: Fit | None = None
    crop_fraction: float | None = None
    interpolation: Interpolation | None = None
    layout: Layout | None = None
    output: Kind | None = None
    output_name: str | None = None
    images: Path | None = None
