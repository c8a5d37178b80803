"""Ends a process whose threads hang.

The event loop and the interpreter wait for all threads before they exit, and a thread that loads a network or
reads from a hanging disk cannot be stopped.
"""

import logging
import os
import threading

from serving.logs import flush_logs

# Time for threads to end after everything else has stopped.
_PATIENCE_S = 1.0

_log = logging.getLogger(__name__)


def exit_soon(code: int = 0) -> None:
    """Let the process exit normally; if threads delay that for a second, exit with this code."""
    timer = threading.Timer(_PATIENCE_S, _abandon_threads, [code])
    timer.daemon = True
    timer.start()


def _abandon_threads(code: int) -> None:
    _log.warning("threads_left", extra={"reason": f"threads did not end within {_PATIENCE_S} s"})
    flush_logs()
    os._exit(code)
