"""Tells a process that works from one that waits, by its CPU time and by what it reads from disks.

A network that loads takes either; one on a volume that does not answer takes neither. Independent of models.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

# Of one core. A server without calls takes less than 1 %; SHA-256 of what a slow volume gives takes more.
_IDLE_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since it began."""

    at_s: float
    cpu_s: float
    blocks_read: int  # also over a network


def usage_of_process() -> Usage:
    """Return what this process has used, with all of its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(time.monotonic(), used.ru_utime + used.ru_stime, used.ru_inblock)


class Progress:
    """Counts the looks in a row at which a process has done next to nothing since the look before.

    Looks are counted, and not seconds: a container that was paused has done nothing either.
    """

    def __init__(self, usage: Callable[[], Usage] = usage_of_process) -> None:
        self._usage = usage
        self._last = usage()
        self._idle_looks = 0

    def idle_looks(self) -> int:
        """Look, and return the count."""
        last, self._last = self._last, self._usage()
        busy_s = _IDLE_SHARE * (self._last.at_s - last.at_s)
        has_worked = self._last.cpu_s - last.cpu_s > busy_s or self._last.blocks_read > last.blocks_read
        self._idle_looks = 0 if has_worked else self._idle_looks + 1
        return self._idle_looks

    def restart(self) -> None:
        """Count from 0 again."""
        self._idle_looks = 0
