"""Threads that get less of a core than requests. Independent of what they do.

A network that loads on the core that answers requests would otherwise take half of it, and calls would be
late meanwhile: `python -m tests.chaos.refresh` measures how late.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

# Added to the nice value: a third of the weight of the other threads (sched(7)). With a tenth, a load on a
# busy core takes longer than a refresh may.
_NICER = 5
_MOST_NICE = 19
_MAX_THREADS = 256  # they start when they are needed; a load that hangs keeps one


def low_priority_threads() -> ThreadPoolExecutor:
    """Return threads of low priority. Threads that they start inherit it, and cannot get rid of it."""
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="load", initializer=_lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has a priority; elsewhere the process
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(nice + _NICER, _MOST_NICE))
