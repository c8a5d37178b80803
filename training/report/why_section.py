"""The section of the report that shows why: what the network looked at, and what it has learned."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from PIL import Image

from training.errors import TwinUnavailable
from training.evaluation.evaluate_bundle import locate
from training.explain.explain import explain
from training.explain.picture import Picture as Drawn
from training.explain.twin import read_twin
from training.networks import Network
from training.report.blocks import Block, Fold, Picture, Prose, Row, Section
from training.report.evidence import Evidence

_LARGEST_PNG = 400_000  # bytes; larger pictures show photographs
_JPEG_QUALITY = 88
_WIDEST_OF_ROW = 680  # pixels; wider pictures do not stand side by side

_TITLES = {
    "occlusion-right": "What it looked at: right predictions",
    "occlusion-wrong": "What it looked at: mistakes",
    "activations-classes": "The ideal image of each class",
    "activations-filters": "What its filters look for",
    "features": "One image on its way through the layers",
    "filters": "The filters of every layer",
}


def why_section(
    evidence: Evidence,
    network: Network | None,
    reason: str = "",
    *,
    before_each: Callable[[], None] = lambda: None,
) -> Section:
    """Draw occlusion maps with Grad-CAM, ideal inputs, feature maps and filters.

    Args:
        evidence: with the exported file.
        network: with its trained weights, on the CPU; None leaves out what needs gradients.
        reason: why there is no network.
        before_each: called before every picture; may raise to end the work.
    """
    pictures, failed = _pictures(evidence, network, before_each)
    rows: list[Block] = []
    for names in (("occlusion-right", "occlusion-wrong"), ("activations-classes", "activations-filters")):
        found = tuple(pictures[name] for name in names if name in pictures)
        if len(found) > 1 and all(_width(picture) <= _WIDEST_OF_ROW for picture in found):
            rows.append(Row(found))
        else:
            rows += found
    rows += [
        Fold(pictures[name].title, (replace(pictures[name], title=""),))
        for name in ("features", "filters")
        if name in pictures
    ]
    notes = [*([f"{reason}."] if reason else []), *failed]
    return Section(
        "why",
        "Why",
        (*rows, *([Prose(tuple(notes))] if notes else [])),
        lead="Which parts of an image decide, and what the layers respond to.",
    )


def twin_or_reason(bundle_dir: Path) -> tuple[Network | None, str]:
    """The network of a bundle with its trained weights, or why there is none.

    Raises:
        UsageError: `bundle_dir` is not a version's folder.
        BundleError: the bundle was changed or damaged since it was published.
    """
    repository, model, version = locate(bundle_dir)
    try:
        return read_twin(repository.read(model, version)).network, ""
    except TwinUnavailable as error:
        return None, str(error)


def _pictures(
    evidence: Evidence, network: Network | None, before_each: Callable[[], None]
) -> tuple[Mapping[str, Picture], list[str]]:
    """Name -> picture, and what could not be drawn: a trained network is not lost for a picture of it."""
    if evidence.model_file is None:
        return {}, []
    shown = evidence.shown
    drawings = explain(
        evidence.model_file,
        network,
        evidence.labels,
        evidence.geometry,
        test=None if shown is None else (shown.test.images, shown.test.labels),
        probabilities=None if evidence.test is None else evidence.test.probabilities,
    )
    pictures, failed = {}, []
    for name, draw in drawings.items():
        before_each()
        try:
            pictures[name] = _block(draw())
        except (RuntimeError, ValueError) as error:
            failed.append(f"{_TITLES[name]}: could not be drawn ({str(error).splitlines()[0]}).")
    return pictures, failed


def _block(drawn: Drawn) -> Picture:
    content = drawn.png
    form: Literal["png", "jpeg"] = "png"
    if len(content) > _LARGEST_PNG:
        content, form = _jpeg(content), "jpeg"
    return Picture(drawn.name, drawn.alt, content, form, caption=drawn.caption, title=_TITLES[drawn.name])


def _width(picture: Picture) -> int:
    with Image.open(io.BytesIO(picture.content)) as image:
        return image.width


def _jpeg(png: bytes) -> bytes:
    """Encode as JPEG: photographs take a fifth of the bytes."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
