"""Returns the memory of large batches to the system.

On a CPU, ONNX Runtime keeps what the largest run took in an arena: many times the size of the weights, for
convolutions on 32 photographs (`make bench-memory`). A run can shrink the arena at its end, but then takes
longer. So only one run does, some seconds after the last large batch.
"""

import logging
import threading
import time
from collections.abc import Callable

import onnxruntime

SHRINK = onnxruntime.RunOptions()
SHRINK.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

_log = logging.getLogger(__name__)


class ArenaTimer:
    """Shrinks the arena of one session some time after its last large batch."""

    def __init__(self, idle_s: float) -> None:
        """Store the number of seconds without a large batch after which the arena shrinks."""
        self._idle_s = idle_s
        self._grown_s = 0.0  # time of the last large batch
        self._timer: threading.Timer | None = None
        self._closed = False

    def start(self, shrink: Callable[[], object]) -> None:
        """Note that a large batch has run; call `shrink` later, in another thread."""
        self._grown_s = time.monotonic()
        if self._timer is None and not self._closed:
            self._wait(self._idle_s, shrink)

    def close(self) -> None:
        """Stop waiting."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, wait_s: float, shrink: Callable[[], object]) -> None:
        self._timer = threading.Timer(wait_s, self._shrink_if_idle, [shrink])
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # the system has no memory for a thread: the next large batch tries again
            self._timer = None

    def _shrink_if_idle(self, shrink: Callable[[], object]) -> None:
        wait_s = self._grown_s + self._idle_s - time.monotonic()
        if self._closed:
            return
        if wait_s > 0:
            self._wait(wait_s, shrink)
            return
        self._timer = None
        try:
            shrink()
        except Exception as error:  # noqa: BLE001 - requests do not depend on it
            if not self._closed:  # meanwhile
                _log.warning("memory_not_released", extra={"reason": str(error)})
