"""Starts child processes that Ctrl-C does not reach: their parent stops them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT in children: the terminal sends Ctrl-C to them too, but the parent stops them.

    Children inherit the signal mask. A SIGINT that arrives in the block is raised at its end: gRPC's threads
    would otherwise deliver it while a child starts.
    """
    resource_tracker.ensure_running()  # the first child would start it, and it would unblock the signal
    arrived: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: arrived.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
    if arrived:
        raise KeyboardInterrupt
