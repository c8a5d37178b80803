"""Writes a report: its numbers as files, its pictures as files, and one HTML page with all of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from training.networks import Network
from training.report.album import Album
from training.report.blocks import Block, Fold, Gallery, Page, Row, Section, pictures_of
from training.report.charts import png
from training.report.evidence import Evidence
from training.report.figures import draw_confusion
from training.report.made_section import made_section
from training.report.metrics import METRICS_FILE, Metrics
from training.report.mistakes import mistakes_section
from training.report.page import render
from training.report.predictions import PREDICTIONS_FILE, write_predictions
from training.report.replaced import replaced_section
from training.report.scores_section import scores_section
from training.report.verdict import summary_blocks, verdict

HISTORY_FILE = "history.json"
PAGE_FILE = "report.html"


def write_report(
    folder: Path, evidence: Evidence, *, network: Network | None = None, why: Sequence[Section] = ()
) -> dict[str, bytes]:
    """Write metrics.json, history.json, predictions.csv, the pictures, and a self-contained report.html.

    Args:
        folder: created if missing.
        evidence: what the report is made from.
        network: the torch network, for its picture.
        why: more sections, after the scores.

    Returns: the pictures, file name -> content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).write_text(evidence.metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")
    records = [asdict(record) for record in evidence.history]
    (folder / HISTORY_FILE).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    if evidence.predictions and evidence.model_file is not None and _complete(evidence):
        digest = hashlib.sha256(evidence.model_file.read_bytes()).hexdigest()
        write_predictions(folder / PREDICTIONS_FILE, evidence.predictions, digest)
    album = Album()
    page = make_page(evidence, album, network=network, why=why)
    pictures = _pictures(page, album, evidence.metrics)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    (folder / PAGE_FILE).write_text(render(page), encoding="utf-8")
    return pictures


def make_page(
    evidence: Evidence, album: Album, *, network: Network | None = None, why: Sequence[Section] = ()
) -> Page:
    """Make the page from the evidence. Arguments as for `write_report`; the album is filled."""
    metrics = evidence.metrics
    sections = (
        mistakes_section(evidence, album),
        scores_section(evidence),
        *why,
        made_section(evidence, network, album),
        replaced_section(evidence, album),
    )
    return Page(
        title=metrics.model,
        subtitle=f"recipe {metrics.recipe['name']}, {metrics.created_at:%d %B %Y, %H:%M} UTC",
        verdict=verdict(evidence),
        summary=summary_blocks(evidence),
        sections=tuple(section for section in sections if section.blocks),
        footer=_footer(metrics),
        album=album.images,
    )


def _complete(evidence: Evidence) -> bool:
    return all(predictions.probabilities is not None for predictions in evidence.predictions.values())


def _pictures(page: Page, album: Album, metrics: Metrics) -> dict[str, bytes]:
    blocks = [*page.summary, *(block for section in page.sections for block in section.blocks)]
    drawn = {f"{picture.name}.{picture.format}": picture.content for picture in pictures_of(blocks)}
    sheets = {f"{gallery.name}.png": album.sheet(gallery) for gallery in _galleries(blocks) if gallery.name}
    return {"confusion.png": png(draw_confusion(metrics.test)), **drawn, **sheets}


def _galleries(blocks: Sequence[Block]) -> Iterator[Gallery]:
    for block in blocks:
        if isinstance(block, Gallery):
            yield block
        elif isinstance(block, Row | Fold):
            yield from _galleries(block.blocks)


def _footer(metrics: Metrics) -> str:
    kernels = f", {metrics.kernels} kernels" if metrics.kernels else ""
    head = f", {metrics.head_epochs} of them of the head only" if metrics.head_epochs else ""
    earlier = metrics.continued_from
    continued = f" (the first {earlier.epochs} in {earlier.run})" if earlier is not None else ""
    training = (
        f" {metrics.epochs} epochs{head}, in {metrics.training_seconds:.0f} s{continued}; published epoch "
        f"{metrics.best_epoch}."
        if metrics.epochs
        else ""
    )
    return (
        f"{metrics.framework} on {metrics.machine}{kernels}.{training} {metrics.parameters:,} trained "
        f"parameters. Recipe {metrics.recipe_digest[:12]}, data {metrics.data_digest[:12]}."
    )
