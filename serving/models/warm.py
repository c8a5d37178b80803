"""Keeps the version before the served one in memory for a while, so that going back takes milliseconds.

One for each model, and only until another version of it has to load: memory never holds more than it does
during a swap. Independent of files.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from serving.models.versions import Version

_log = logging.getLogger(__name__)


class WarmVersions:
    """At most one version for each model, each with the time at which it is retired."""

    def __init__(self, keep_s: float, retire: Callable[[Iterable[Version]], None]) -> None:
        """Store the options.

        Args:
            keep_s: seconds that a version stays; 0: it is retired at once.
            retire: unloads versions when their requests are answered.
        """
        self._keep_s = keep_s
        self._retire = retire
        self._kept: dict[str, tuple[Version, asyncio.TimerHandle]] = {}

    def keep(self, version: Version) -> None:
        """Keep a version that is no longer served, in place of the one that was kept before."""
        name = version.bundle.model
        self.drop(name)
        if not self._keep_s or version.broken:
            self._retire([version])
            return
        expire = asyncio.get_running_loop().call_later(self._keep_s, self.drop, name)
        self._kept[name] = version, expire
        _log.info("version_kept_warm", extra=version.log_fields(seconds=self._keep_s))

    def take(self, name: str, number: int) -> Version | None:
        """Return a version that is to be served again; None if it is not kept, or broken."""
        version, _ = self._kept.get(name, (None, None))
        if version is None or version.number != number or version.broken:
            return None
        self._kept.pop(name)[1].cancel()
        return version

    def drop(self, name: str) -> None:
        """Retire the version of a model, if one is kept."""
        if name in self._kept:
            version, expire = self._kept.pop(name)
            expire.cancel()
            self._retire([version])

    def clear(self) -> None:
        """Forget all versions, without unloading them."""
        for _, expire in self._kept.values():
            expire.cancel()
        self._kept.clear()
