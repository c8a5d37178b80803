"""The images of one version that wait, and how fast they are worked off. Independent of clocks and threads.

Times are measured where the work is done, once for each batch and each decoded image, and smoothed. They are
wall-clock times: on busy cores they grow as the throughput falls.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

# The weight of all earlier batches, beside that of the newest: the estimate follows within about ten.
_KEPT = 0.9
# A longer measurement, except for the first one, counts as this many times the estimate: a process that was
# stopped for a minute is not slow.
_LARGEST_STEP = 10.0


@dataclass(slots=True, eq=False)
class Backlog:
    """Counts the admitted images of one version, and estimates what each of them takes."""

    images: int = 0  # admitted and not yet answered
    run_s: float = 0.0  # of the network for one image, in batches as they are now; 0.0: not measured yet
    decode_s: float = 0.0  # of one image in a decoding thread; 0.0: not measured yet
    decoded_until_s: float = 0.0  # virtual time of the decoding queue
    max_batch_size: int = 1
    waiting: deque[asyncio.Future[bool]] = field(
        default_factory=deque
    )  # requests of streams, before admission
    passed_over: int = 0  # times that none of them was woken
    _recent_s: float = 0.0
    _recent_images: float = 0.0

    def record_run(self, images: int, duration_s: float) -> None:
        """Note a run of the network.

        Args:
            images: in the batch.
            duration_s: from its start until its answers.
        """
        if self._recent_images:
            duration_s = min(duration_s, _LARGEST_STEP * self.run_s * images)
        self._recent_s = _KEPT * self._recent_s + duration_s
        self._recent_images = _KEPT * self._recent_images + images
        self.run_s = self._recent_s / self._recent_images

    def batch_s(self, images: int) -> float:
        """Estimate the run of the batch in which more images would be; several batches if they are many."""
        return max(images, min(self.images + images, self.max_batch_size)) * self.run_s

    def record_decode(self, duration_s: float) -> None:
        """Note the duration of decoding and resizing one image in a thread."""
        if self.decode_s:
            step_s = min(duration_s, _LARGEST_STEP * self.decode_s) - self.decode_s
            self.decode_s += (1 - _KEPT) * step_s
        else:
            self.decode_s = duration_s
