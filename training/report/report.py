"""Writes the report of a run: metrics, history, predictions, figures, and one HTML page."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.evaluation.proof import Misclassification
from training.learning.history import EpochRecord
from training.report.figures import draw_augmentation, draw_confusion, draw_curve, draw_history, png
from training.report.metrics import METRICS_FILE, Metrics
from training.report.page import render
from training.report.predictions import PREDICTIONS_FILE, Predictions, write_predictions


def write_report(  # noqa: PLR0917 - one argument per part of a run
    folder: Path,
    metrics: Metrics,
    history: Sequence[EpochRecord],
    misclassified: Sequence[Misclassification],
    predictions: Mapping[str, Predictions],
    model_file: Path,
    examples: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write metrics.json, history.json, predictions.csv, the figures, and a self-contained report.html.

    Args:
        folder: folder to write to, created if missing.
        metrics: metrics of the run.
        history: one record per epoch.
        misclassified: misclassified test images, most confident first.
        predictions: split -> predictions for its images.
        model_file: exported file, which predicted them.
        examples: (rows, columns, H, W, C) uint8; each row is an image and its augmented versions. None: the
            recipe has no augmentation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).write_text(metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")
    records = [asdict(record) for record in history]
    (folder / "history.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()
    write_predictions(folder / PREDICTIONS_FILE, predictions, digest)
    pictures = {"confusion.png": png(draw_confusion(metrics.test))}
    if history:
        pictures["history.png"] = png(
            draw_history(history, metrics.best_epoch, validation_chose=metrics.validation_chose_epoch)
        )
    if metrics.few_shot:
        pictures["few-shot.png"] = png(draw_curve(metrics.few_shot))
    if examples is not None:
        pictures["augmentation.png"] = png(draw_augmentation(examples))
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    page = render(metrics, pictures, misclassified)
    (folder / "report.html").write_text(page, encoding="utf-8")
