"""Threads that get a core only while requests leave it idle. Independent of what they do.

A network that loads on the core that answers requests would otherwise take half of it. At half of the
capacity p99 rose to between 2 and 11 times meanwhile, and rises to 1.1 to 1.4 times with these threads
(`python -m tests.chaos.refresh`).
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

# Added to the nice value: a tenth of the weight of the other threads (sched(7)). With more, a busy server
# would take minutes to load a version.
_NICER = 10
_MOST_NICE = 19
_MAX_THREADS = 256  # they start when they are needed; a load that hangs keeps one


def low_priority_threads() -> ThreadPoolExecutor:
    """Return threads of low priority. Threads that they start inherit it, and cannot get rid of it."""
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="load", initializer=_lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has a priority; elsewhere the process
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(nice + _NICER, _MOST_NICE))
