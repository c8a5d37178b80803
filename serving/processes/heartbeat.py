"""Decides whether a process hangs, from the signs of life that it sends. Does no I/O.

Time is counted in looks of the observer: while it does not run itself, for example because the whole
container is paused, no process is late.
"""

LOOK_S = 0.25  # between two looks, and between two signs of life
LATE_AFTER_S = 1.0  # or half of the limit: it may recover, but gets no new work
STARTS_WITHIN_S = 120.0  # until the first sign of life: many workers import at the same time


class Heartbeat:
    """The signs of life of one process."""

    def __init__(
        self, *, hung_after_s: float, starts_within_s: float = STARTS_WITHIN_S, look_s: float = LOOK_S
    ) -> None:
        """Begin with a process that has just been started.

        Args:
            hung_after_s: silence after which it hangs.
            starts_within_s: the same, before its first sign of life.
            look_s: time between two looks.
        """
        self._hung_after_s = hung_after_s
        self._starts_within_s = starts_within_s
        self._look_s = look_s
        self._silent_looks = 0
        self._has_started = False

    def beat(self) -> None:
        """Note a sign of life."""
        self._silent_looks = 0
        self._has_started = True

    def look(self) -> None:
        """Note that another `look_s` has passed."""
        self._silent_looks += 1

    @property
    def silent_s(self) -> float:
        """Time since the last sign of life."""
        return self._silent_looks * self._look_s

    @property
    def is_late(self) -> bool:
        """Whether a process that has started does not answer now."""
        return self._has_started and self.silent_s >= min(LATE_AFTER_S, self._hung_after_s / 2)

    @property
    def is_hung(self) -> bool:
        """Whether to give the process up."""
        return self.silent_s > (self._hung_after_s if self._has_started else self._starts_within_s)
