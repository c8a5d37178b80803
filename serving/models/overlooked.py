"""Logs folders that look like models or versions but are not taken as such, each once."""

import logging
from contextlib import suppress
from pathlib import Path

from serving.bundle import Repository

_log = logging.getLogger(__name__)


class Overlooked:
    """Remembers what it has logged, and which folders have not changed since."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._seen: dict[str | None, int] = {}  # model, or None for the repository -> mtime in ns
        self._logged: set[str] = set()

    def log_new(self, model: str | None = None) -> None:
        """Look at the folder of a model, or at the repository, if it has changed. Called in a thread."""
        with suppress(OSError):  # the refresh of the model reports it
            changed_ns = (self._repository.root / (model or Path())).stat().st_mtime_ns
            if self._seen.get(model) == changed_ns:
                return
            for found in self._repository.overlooked(model):
                if found not in self._logged:
                    self._logged.add(found)
                    _log.warning("folder_overlooked", extra={"reason": found})
            self._seen[model] = changed_ns
