"""What a champion's run measured on its own images, as its manifest and metrics.json keep it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bundle import Bundle
from training.champion.judge import MIN_RECALL_IMAGES

_METRICS = Path("report") / "metrics.json"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Empty or None: not recorded, such as by an import."""

    trained: Mapping[str, int]  # label -> training images
    accuracy: float | None  # on its own test images, 0..1
    recalls: Mapping[str, float]  # label -> recall, 0..1; without labels of few test images


def read_recorded_by(champion: Bundle) -> Recorded:
    """Read what is there; a missing or damaged metrics.json records nothing."""
    metrics, measured = _read_metrics(champion), champion.manifest.evaluation
    return Recorded(
        _mapping(_mapping(_mapping(metrics.get("data")).get("counts")).get("train")),
        None if measured is None else measured.accuracy.value,
        _recalls(_mapping(metrics.get("test")).get("labels")),
    )


def _recalls(labels: object) -> Mapping[str, float]:
    try:
        return {
            str(each["label"]): float(each["recall"])
            for each in (labels if isinstance(labels, list) else [])
            if int(each["images"]) >= MIN_RECALL_IMAGES
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _read_metrics(champion: Bundle) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads((champion.folder / _METRICS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
