"""How a process ends whose threads do not. Knows nothing of what they do.

The event loop and the interpreter wait for every thread at their end, but nothing can stop one that loads a
network or reads from a disk that hangs.
"""

import logging
import os
import threading

# What threads get to end by themselves when all else is over.
_PATIENCE_S = 1.0

_log = logging.getLogger(__name__)


def end_soon() -> None:
    """Let the process end by itself, or with 0 where its threads hold that up."""
    timer = threading.Timer(_PATIENCE_S, _leave_threads)
    timer.daemon = True
    timer.start()


def _leave_threads() -> None:
    _log.warning("threads_left", extra={"reason": f"they did not end within {_PATIENCE_S} s"})
    os._exit(0)
