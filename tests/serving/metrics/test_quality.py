"""What a version answers, as metrics: predicted labels, confidence, drift."""

import numpy as np
import pytest
from prometheus_client import generate_latest

from serving.bundle import Reference, reference_of
from serving.metrics.families import MAX_SHOWN_LABELS, MIN_DRIFT_IMAGES
from serving.metrics.quality import Probabilities
from serving.metrics.recorder import Metrics, MetricsCollector
from serving.metrics.shared_counts import CountsMemory, SharedCounts, read_counts

LABELS = ("red", "green", "blue")


def _answers(*labels: int, of: int = 3, confidence: float = 0.94) -> Probabilities:
    """One image for each given label."""
    rest = (1 - confidence) / (of - 1)
    rows = np.full((len(labels), of), rest, np.float32)  # (N, K)
    rows[range(len(labels)), labels] = confidence
    return rows


def _scraped(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": "colours", "version": "1", **labels})


def _reference() -> Reference:
    return reference_of(_answers(*[0, 1, 2] * 100))


def test_predicted_labels_and_confidence_are_counted() -> None:
    """Every image once, and nothing before the first one."""
    metrics = Metrics()
    quality = metrics.quality("colours", 1, LABELS, _reference())
    assert 'model="colours"' not in generate_latest(metrics.registry).decode()
    quality.record_answers(_answers(0, 0, 2))
    quality.record_answers(_answers(2, confidence=0.5))
    assert _scraped(metrics, "lenserve_predictions_total", label="red") == 2
    assert _scraped(metrics, "lenserve_predictions_total", label="blue") == 2
    assert _scraped(metrics, "lenserve_predictions_total", label="green") is None
    assert _scraped(metrics, "lenserve_confidence_ratio_count") == 4
    assert _scraped(metrics, "lenserve_confidence_ratio_sum") == pytest.approx(3 * 0.94 + 0.5)
    assert _scraped(metrics, "lenserve_confidence_ratio_bucket", le="0.5") == 1
    assert _scraped(metrics, "lenserve_confidence_ratio_bucket", le="0.95") == 4


def test_many_runs_are_counted_without_a_scrape() -> None:
    """What is kept until then is bounded, by images and by probabilities."""
    metrics = Metrics()
    for name, labels, images in (("colours", 3, 1024), ("things", 1000, 65)):
        quality = metrics.quality(name, 1, [str(each) for each in range(labels)], None)
        for _ in range(images - 1):
            quality.record_answers(_answers(1, of=labels))
        assert metrics.predictions.find(name, "1", "1") is None
        quality.record_answers(_answers(1, of=labels))
        counted = metrics.predictions.find(name, "1", "1")
        assert counted is not None
        assert counted.value == images


def test_a_network_of_many_labels_exports_few_series() -> None:
    """The labels that came first have their own, others are summed; one named `other` does not clash."""
    metrics = Metrics()
    labels = ["other", *(f"label {index}" for index in range(1, 200))]
    quality = metrics.quality("colours", 1, labels, None)
    for _ in range(3):
        quality.record_answers(_answers(*range(200), of=200))
    metrics.registry.collect()
    shown = generate_latest(metrics.registry).decode().count("lenserve_predictions_total{")
    assert shown == MAX_SHOWN_LABELS
    assert _scraped(metrics, "lenserve_predictions_total", label="label 1") == 3
    assert _scraped(metrics, "lenserve_predictions_total", label="other") == 3 * (200 - MAX_SHOWN_LABELS + 1)


def test_drift_of_labels_and_of_confidence_are_apart() -> None:
    """The usual limit for a large change is 0.25; fewer than a hundred images have no index."""
    metrics = Metrics()
    quality = metrics.quality("colours", 1, LABELS, _reference())
    index = "lenserve_population_stability_index"
    quality.record_answers(_answers(*[0, 1, 2] * (MIN_DRIFT_IMAGES // 3)))
    assert _scraped(metrics, index, distribution="labels") is None
    quality.record_answers(_answers(*[0, 1, 2] * 30))
    assert _scraped(metrics, index, distribution="labels") == 0
    assert _scraped(metrics, index, distribution="confidence") == 0
    quality.record_answers(_answers(*[0] * 600))
    labels, confidence = (_scraped(metrics, index, distribution=name) for name in ("labels", "confidence"))
    assert labels is not None
    assert labels > 0.5
    assert confidence == 0
    assert _scraped(metrics, "lenserve_drift_window_images") == 789


def test_a_version_without_a_reference_has_no_drift() -> None:
    """Predictions and confidence are counted all the same."""
    metrics = Metrics()
    metrics.quality("colours", 1, LABELS, None).record_answers(_answers(*[0] * 500))
    text = generate_latest(metrics.registry).decode()
    assert "lenserve_population_stability_index{" not in text
    assert _scraped(metrics, "lenserve_predictions_total", label="red") == 500


def test_workers_add_up_their_windows() -> None:
    """One worker sees only red and the other no red: together there is no drift."""
    reference = _reference()
    memories = {number: CountsMemory.create("test") for number in range(2)}
    workers = [Metrics(SharedCounts(memories, number)) for number in memories]
    for metrics, labels in zip(workers, ([0] * 200, [1, 2] * 200), strict=True):
        metrics.quality("colours", 1, LABELS, reference).record_answers(_answers(*labels))
        metrics.flush()
    collector = MetricsCollector(lambda: read_counts(memories.values()))
    together = {each.name: each for each in collector.collect()}
    for memory in memories.values():
        memory.close()
    indices = {
        each.labels["distribution"]: each.value
        for each in together["lenserve_population_stability_index"].samples
    }
    assert indices == {"labels": 0, "confidence": 0}
    assert {each.labels["label"]: each.value for each in together["lenserve_predictions"].samples} == {
        "red": 200,
        "green": 200,
        "blue": 200,
    }
    (window,) = together["lenserve_drift_window_images"].samples
    assert window.value == 600


def test_workers_with_different_references_do_not_break_a_scrape() -> None:
    """One of them has loaded the version after its files were exchanged."""
    metrics = Metrics()
    states = [(100.0, 100.0, 50.0, 50.0), (200.0, 200.0)]
    metrics.stability_index.merge(("colours", "1", "labels"), states)
    assert _scraped(metrics, "lenserve_population_stability_index", distribution="labels") == 0


def test_a_version_that_is_loaded_again_loses_no_answers() -> None:
    """Those that were not counted yet are counted then."""
    metrics = Metrics()
    for _ in range(2):
        metrics.quality("colours", 1, LABELS, None).record_answers(_answers(0))
    assert _scraped(metrics, "lenserve_predictions_total", label="red") == 2


def test_a_forgotten_version_leaves_no_answers() -> None:
    """Its series go with it, and no later scrape brings them back."""
    metrics = Metrics()
    metrics.quality("colours", 1, LABELS, _reference()).record_answers(_answers(*[0] * 500))
    assert _scraped(metrics, "lenserve_predictions_total", label="red") == 500
    metrics.forget("colours", 1)
    assert 'model="colours"' not in generate_latest(metrics.registry).decode()
