"""Watches what a version answers: predicted labels, confidence, and their drift from the reference.

A run of the network only copies its probabilities. They are counted together, every 1,024 images and at a
scrape: 0.3 us for a request of one image of ten labels, where counting each alone takes 15 us. Keeping the
arrays instead of copies costs 1 us more, since numpy then cannot use their memory for the next outputs.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from serving.bundle import Reference
from serving.bundle.reference import Answers, count_answers
from serving.metrics.counters import CounterValue
from serving.metrics.drift import Window, confidence_bins, in_bins, label_bins
from serving.metrics.families import MetricFamilies

# Few enough to be counted in 0.1 ms, and to hold little memory.
_MAX_KEPT_IMAGES = 1024
_MAX_KEPT_PROBABILITIES = 65_536

# The window has at least this many images before half of it is dropped.
_MIN_WINDOW_IMAGES = 500

Probabilities = npt.NDArray[np.float32]  # (N, K)


class QualityMetrics:
    """Watches the answers of one version. Series appear with its first answers."""

    def __init__(
        self,
        families: MetricFamilies,
        served: tuple[str, str],
        labels: Sequence[str],
        reference: Reference | None,
        *,
        window_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without answers.

        Args:
            families: where the series are.
            served: model and version.
            labels: K labels.
            reference: answers of the published file for the test images; None: drift is not measured.
            window_s: drift is that of the images of this time, and of more if they are few.
            clock: returns seconds.
        """
        self._families = families
        self._served = served
        self._labels = labels
        self._kept: deque[bytes] = deque()  # float32; thread-safe: runs append, a scrape takes
        self._kept_images = 0
        self._max_images = max(1, min(_MAX_KEPT_IMAGES, _MAX_KEPT_PROBABILITIES // len(labels)))
        self._counting = Lock()
        self._predictions: dict[int, CounterValue] = {}  # by index of the label
        self._drift = None if reference is None else _Drift(families, served, reference, window_s, clock)

    def record_answers(self, probabilities: Probabilities) -> None:
        """Keep the answers of one run of the network. Called on the event loop."""
        self._kept.append(probabilities.tobytes())
        self._kept_images += len(probabilities)
        if self._kept_images >= self._max_images:
            self.count()

    def count(self) -> None:
        """Count the answers that were kept. Any thread may call this."""
        with self._counting:
            kept = [self._kept.popleft() for _ in range(len(self._kept))]
            self._kept_images = 0
            if kept:
                rows = np.frombuffer(b"".join(kept), np.float32).reshape(-1, len(self._labels))  # (N, K)
                self._count(count_answers(rows))

    def _count(self, answers: Answers) -> None:
        for index in np.flatnonzero(answers.predicted).tolist():
            (self._predictions.get(index) or self._counter(index)).value += int(answers.predicted[index])
        confidence = self._families.confidence.labels(*self._served)
        confidence.add(answers.confidence.tolist(), answers.confidence_sum)
        if self._drift is not None:
            self._drift.add(answers)

    def _counter(self, index: int) -> CounterValue:
        counter = self._families.predictions.labels(*self._served, self._labels[index])
        self._predictions[index] = counter
        return counter


class _Drift:
    """Keeps the drift of one version up to date."""

    def __init__(
        self,
        families: MetricFamilies,
        served: tuple[str, str],
        reference: Reference,
        window_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._families = families
        self._served = served
        self._clock = clock
        self._label_bins, self._confidence_bins = label_bins(reference), confidence_bins(reference)
        self._labels = in_bins(reference.predicted, self._label_bins)
        self._confidence = in_bins(reference.confidence, self._confidence_bins)
        self._window = Window(
            len(self._labels) + len(self._confidence),
            window_s=window_s,
            min_images=_MIN_WINDOW_IMAGES,
            now_s=clock(),
        )

    def add(self, answers: Answers) -> None:
        labels = in_bins(answers.predicted, self._label_bins)
        counts = labels + in_bins(answers.confidence, self._confidence_bins)
        window = self._window.add(counts, sum(labels), self._clock())
        index = self._families.stability_index
        live, live_confidence = window[: len(labels)], window[len(labels) :]
        index.labels(*self._served, "labels").compare(live, self._labels)
        index.labels(*self._served, "confidence").compare(live_confidence, self._confidence)
        self._families.window_images.labels(*self._served).set(sum(live))
