"""The images of one version that wait, and how fast they are worked off. Independent of clocks and threads.

Times are measured where the work is done, once for each batch and each decoded image, and smoothed. They are
wall-clock times: on busy cores they grow as the throughput falls.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

# The weight of all earlier measurements, beside that of the newest: the estimate follows within about ten. It
# follows a slower network sooner: a core that other processes take must not make calls late.
_KEPT = 0.9
_KEPT_IF_LONGER = 0.7
# A longer measurement, except for the first one, counts as this many times the estimate: a process that was
# stopped for a minute is not slow.
_LARGEST_STEP = 4.0
# The rest of `record_run` takes 0.4 us, of the 34 us of a LeNet-5 request: queues for shorter runs are short.
_WORTH_FITTING_S = 1e-3
# Batches whose sizes differ by less than this share of their mean tell little about other sizes. Then each
# further image is expected to take this share of what an image takes on average, until larger batches tell.
_LITTLE_SPREAD = 0.1
_FURTHER_IMAGE = 0.3


@dataclass(slots=True, eq=False)
class Backlog:
    """Counts the admitted images of one version, and estimates what each of them takes."""

    images: int = 0  # admitted and not yet answered
    running_images: int = 0  # in the batch that runs in a thread
    running_since_s: float = 0.0  # on the clock of time.monotonic()
    run_s: float = 0.0  # of the network for each image; 0.0: not measured yet
    start_s: float = 0.0  # and for each batch, however few images it has
    decode_s: float = 0.0  # of one image in a decoding thread; 0.0: not measured yet
    decoded_until_s: float = 0.0  # virtual time of the decoding queue
    max_batch_size: int = 1
    waiting: deque[asyncio.Future[bool]] = field(
        default_factory=deque
    )  # requests of streams, before admission
    passed_over: int = 0  # times that none of them was woken
    # Of the sizes and durations of recent batches; 0.0: there was none.
    _mean_images: float = 0.0
    _mean_s: float = 0.0
    _variance: float = 0.0
    _covariance: float = 0.0

    def record_run(self, images: int, duration_s: float) -> None:
        """Note a run of the network, and fit a line through the recent ones.

        An estimate in proportion to the images would be too high for larger batches than those of late: fewer
        images would be admitted, the batches would become smaller still, and most of the capacity be lost.

        Args:
            images: in the batch.
            duration_s: from its start until its answers.
        """
        if not self._mean_images:
            self._mean_images, self._mean_s = images, duration_s
            self.run_s, self.start_s = duration_s / images, 0.0
            return
        expected_s = self.start_s + images * self.run_s
        duration_s = min(duration_s, _LARGEST_STEP * expected_s)
        kept = _KEPT if duration_s <= expected_s else _KEPT_IF_LONGER
        more_images, more_s = images - self._mean_images, duration_s - self._mean_s
        mean = self._mean_images = self._mean_images + (1 - kept) * more_images
        self._mean_s += (1 - kept) * more_s
        if self._mean_s < _WORTH_FITTING_S:
            self.run_s, self.start_s = self._mean_s / mean, 0.0
            return
        self._variance = kept * (self._variance + (1 - kept) * more_images * more_images)
        self._covariance = kept * (self._covariance + (1 - kept) * more_images * more_s)
        image_s, ridge = self._mean_s / mean, (_LITTLE_SPREAD * mean) ** 2
        further_s = (self._covariance + ridge * _FURTHER_IMAGE * image_s) / (self._variance + ridge)
        self.run_s = min(max(further_s, 0.0), image_s)
        self.start_s = self._mean_s - mean * self.run_s

    @property
    def queued(self) -> int:
        """Images that do not run yet. Calls that were cancelled may still run."""
        return max(0, self.images - self.running_images)

    def wait_s(self, now_s: float) -> float:
        """Estimate how long a new image waits for those before it, in the running batch and after it.

        Those of a batch that has room cost it only their own time: it is started anyway. A run that takes
        longer than it should is expected to go on for as long again.

        Args:
            now_s: on the clock of time.monotonic().
        """
        queued = self.queued
        wait_s = queued // self.max_batch_size * self.start_s + queued * self.run_s
        if self.running_images:
            expected_s = self.start_s + self.running_images * self.run_s
            wait_s += abs(expected_s - (now_s - self.running_since_s))
        return wait_s

    def batch_s(self, images: int) -> float:
        """Estimate the run of the batch in which more images would be; several batches if they are many."""
        batches = -(-images // self.max_batch_size)
        run_images = max(images, min(self.queued + images, self.max_batch_size))
        return batches * self.start_s + run_images * self.run_s

    def record_decode(self, duration_s: float) -> None:
        """Note the duration of decoding and resizing one image in a thread."""
        if self.decode_s:
            step_s = min(duration_s, _LARGEST_STEP * self.decode_s) - self.decode_s
            self.decode_s += (1 - _KEPT) * step_s
        else:
            self.decode_s = duration_s
