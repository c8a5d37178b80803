"""Notices changed files and loads them again: tokens and certificates are renewed without a restart.

Files are compared by content: some are written in place, and those of mounted secrets are symbolic links that
are exchanged.
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from serving.limited_files import read_limited

_log = logging.getLogger(__name__)


class ChangedFiles:
    """Files that are loaded together, as a certificate and its key."""

    def __init__(self, files: Sequence[Path], reload: Callable[[], object]) -> None:
        """Remember the present contents. Create this before the files are loaded: no change is lost.

        Args:
            files: read at each look, so they should be small.
            reload: loads the files, in another thread. If it raises, what was loaded before stays in use.
        """
        self._files = files
        self._reload = reload
        self._loaded = self._digest()
        self._problem = ""
        self._looking = threading.Lock()

    async def watch(self, interval_s: float) -> None:
        """Look at every interval, in a thread, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            with suppress(RuntimeError, MemoryError):  # the system has no memory for a thread now
                await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Load the files again if they have changed. A failure is logged once, and tried at each look.

        Does nothing while another thread looks: its volume may hang.
        """
        if self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()

    def _look(self) -> None:
        digest = self._digest()
        if digest == self._loaded:
            self._problem = ""
            return
        names = ", ".join(map(str, self._files))
        try:
            self._reload()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the server goes on
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("files_not_reloaded", extra={"files": names, "reason": self._problem})
        else:
            self._loaded, self._problem = digest, ""
            _log.info("files_reloaded", extra={"files": names})

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for file in self._files:
            try:
                content = hashlib.sha256(read_limited(file)).digest()
            except OSError:
                content = b"unreadable"
            digest.update(content)
        return digest.digest()
