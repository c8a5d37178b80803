"""The population stability index: its bins, its value, and the window of recent images."""

import numpy as np
import pytest

from serving.bundle import Reference, reference_of
from serving.bundle.manifest import CONFIDENCE_BUCKETS
from serving.bundle.reference import stability_index
from serving.metrics.drift import Window, confidence_bins, in_bins, label_bins


def _reference(predicted: list[int], confidence: list[int] | None = None) -> Reference:
    return Reference(predicted=tuple(predicted), confidence=tuple(confidence or [0] * 12 + [sum(predicted)]))


def test_few_labels_have_a_bin_each() -> None:
    """Ten digits are ten bins."""
    assert sorted(label_bins(_reference([36] * 10)).tolist()) == list(range(10))


def test_a_thousand_labels_share_twenty_bins_of_equal_weight() -> None:
    """A frequent label does not make its bin much heavier than others."""
    images = np.random.default_rng(0).integers(1, 100, 1000).tolist()
    counts = in_bins(images, label_bins(_reference(images)))
    assert len(counts) == 20
    assert max(counts) < 1.02 * min(counts)


def test_labels_of_a_small_reference_share_bins() -> None:
    """Twelve images of ten labels make two bins: chance alone would move ten."""
    assert len(in_bins([2, 2, 1, 1, 1, 1, 1, 1, 1, 1], label_bins(_reference([2, 2, *[1] * 8])))) == 2


def test_bins_of_confidence_are_few() -> None:
    """Neighbours with few images are joined; what is rare stays apart from what is frequent."""
    confidence = [0, 1, 2, 0, 0, 3, 4, 0, 0, 9, 300, 0, 2]
    bins = confidence_bins(_reference([sum(confidence)], confidence))
    assert in_bins(confidence, bins) == [6, 4, 9, 300, 2]
    assert bins.tolist() == sorted(bins.tolist())
    assert len(bins) == CONFIDENCE_BUCKETS


@pytest.mark.parametrize(("live", "reference"), [(500, 500), (2000, 300), (20_000, 10_000)])
def test_without_drift_the_index_is_small(live: int, reference: int) -> None:
    """Under 0.1, the usual limit for no change, in 99 of 100 windows of the same distribution."""
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(20) * 5)
    indices = [
        stability_index(
            generator.multinomial(live, shares).tolist(), generator.multinomial(reference, shares).tolist()
        )
        for _ in range(300)
    ]
    assert np.quantile(indices, 0.99) < 0.1
    assert np.mean(indices) < 0.02


@pytest.mark.parametrize("bucket", [4, 12])
def test_a_network_that_was_sure_of_every_test_image_may_be_unsure(bucket: int) -> None:
    """And the other way round: all images of the reference are in one bucket, all live ones in another."""
    reference = [0] * 13
    live = [0] * 13
    reference[-1 if bucket == 4 else 9] = live[bucket] = 300
    bins = confidence_bins(_reference([300], reference))
    assert stability_index(in_bins(live, bins), in_bins(reference, bins)) > 1


@pytest.mark.parametrize("images", [300, 1000, 10_000])
def test_confidence_without_drift_has_a_small_index(images: int) -> None:
    """Also where a network is sure of nearly all images, so that most buckets are nearly empty."""
    generator = np.random.default_rng(0)
    shares = np.array([0, 0, 0, 1, 1, 2, 3, 3, 5, 5, 20, 60, 900]) / 1000
    indices = []
    for _ in range(300):
        reference = generator.multinomial(images, shares).tolist()
        bins = confidence_bins(_reference([images], reference))
        live = generator.multinomial(500, shares).tolist()
        indices.append(stability_index(in_bins(live, bins), in_bins(reference, bins)))
    assert np.quantile(indices, 0.99) < 0.1


def test_a_class_that_doubles_is_seen() -> None:
    """One of ten classes takes a third of the traffic: more than 0.25, the usual limit for a large change."""
    assert stability_index([370, *[70] * 9], [100] * 10) > 0.25


def test_traffic_of_five_of_a_thousand_labels_is_seen() -> None:
    """They fall into at most five of twenty bins."""
    reference = reference_of(np.eye(1000).repeat(5, axis=0))
    bins = label_bins(reference)
    live = np.zeros(1000, np.intp)
    live[[3, 141, 592, 653, 999]] = 100
    assert stability_index(in_bins(live, bins), in_bins(reference.predicted, bins)) > 1


def test_a_window_drops_its_older_half() -> None:
    """Half of ten seconds after the last time, if the newer half has enough images."""
    window = Window(2, window_s=10, min_images=4, now_s=0)
    assert window.add([1, 0], 1, now_s=1) == [1, 0]
    assert window.add([1, 0], 1, now_s=6) == [2, 0]  # old enough, but only one image
    assert window.add([0, 1], 1, now_s=7) == [2, 1]  # full: a new half begins
    assert window.add([0, 2], 2, now_s=11) == [2, 3]  # not old enough
    assert window.add([5, 5], 10, now_s=12) == [5, 8]  # the first two images are gone
