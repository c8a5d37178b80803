"""Decides whether a process hangs, from the signs of life that it sends. Does no I/O.

Time is counted in looks of the observer: while it does not run itself, for example because the whole
container is paused, no process is late.
"""

LOOK_S = 0.25  # between two looks, and between two signs of life
LATE_AFTER_S = 1.0  # or half of the limit: it may recover, but gets no new work
STARTS_WITHIN_S = 120.0  # instead of the limit, until it serves: imports and CUDA's start may take that long


class Heartbeat:
    """The signs of life of one process."""

    def __init__(
        self, *, hung_after_s: float, starts_within_s: float = STARTS_WITHIN_S, look_s: float = LOOK_S
    ) -> None:
        """Begin with a process that has just been started.

        Args:
            hung_after_s: silence after which it hangs.
            starts_within_s: the same, before it serves.
            look_s: time between two looks.
        """
        self._hung_after_s = hung_after_s
        self._starts_within_s = starts_within_s
        self._look_s = look_s
        self._silent_looks = 0
        self._serves = False

    def beat(self) -> None:
        """Note a sign of life."""
        self._silent_looks = 0

    def begin_serving(self) -> None:
        """Note that the process has started, and serves."""
        self._serves = True

    def look(self) -> None:
        """Note that another `look_s` has passed."""
        self._silent_looks += 1

    @property
    def silent_s(self) -> float:
        """Time since the last sign of life."""
        return self._silent_looks * self._look_s

    @property
    def is_late(self) -> bool:
        """Whether a process that serves does not answer now."""
        return self._serves and self.silent_s >= min(LATE_AFTER_S, self._hung_after_s / 2)

    @property
    def is_hung(self) -> bool:
        """Whether to give the process up."""
        return self.silent_s > (self._hung_after_s if self._serves else self._starts_within_s)
