"""Keeps the copy of a repository behind a URL up to date, in a thread of the process that `serve` started.

Servers and workers read the copy like any repository: they do not know that there is a store.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from serving.bundle.mirror import Mirror, MirrorPass
from serving.bundle.store import Store
from serving.bundle.urls import copy_folder, is_url
from serving.errors import LenserveError, UsageError
from serving.settings import ServerSettings

START_PATIENCE_S = 30.0  # a server that has a copy does not wait longer for the store

_log = logging.getLogger(__name__)


@contextmanager
def mirrored(settings: ServerSettings) -> Iterator[None]:
    """Follow the store of a repository that is a URL. Does nothing for a directory.

    Raises:
        UsageError: the store cannot be read, and there is no earlier copy to serve.
    """
    if not is_url(settings.repository):
        yield
        return
    with MirrorThread(open_mirror(settings), settings.store_interval_s):
        yield


def mirror_once(settings: ServerSettings) -> None:
    """Look once at the store of a repository that is a URL. Does nothing for a directory.

    Raises:
        UsageError: something in the store cannot be read or copied.
    """
    if is_url(settings.repository):
        found = _look(open_mirror(settings))
        if found.problems:
            raise UsageError(found.problems[0])


def open_mirror(settings: ServerSettings) -> Mirror:
    """Return the mirror of a repository that is a URL.

    Raises:
        UsageError: there is no place for the copy.
    """
    return Mirror(
        Store(settings.repository),
        copy_folder(settings.repository, settings.repository_cache),
        kept_versions=settings.repository_cache_versions,
    )


class MirrorThread:
    """Looks at the store now and at every interval. `with` waits for the first look, and stops the thread."""

    def __init__(
        self, mirror: Mirror, interval_s: float, *, start_patience_s: float = START_PATIENCE_S
    ) -> None:
        """Store the options.

        Args:
            mirror: what it runs.
            interval_s: from the end of a look to the beginning of the next.
            start_patience_s: the longest wait for the first look if there is an earlier copy.
        """
        self._mirror = mirror
        self._interval_s = interval_s
        self._start_patience_s = start_patience_s
        self._problems: list[str] = []
        self._looked = threading.Event()
        self._stop = threading.Event()
        # A look may wait for the network: it does not keep a process from exiting.
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        has_copy = bool(self._mirror.repository.models())
        self._looked.wait(self._start_patience_s if has_copy else None)
        if self._problems and not self._mirror.repository.models():
            self._stop.set()
            raise UsageError(f"{self._problems[0]}; there is no earlier copy to serve")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._log(_look(self._mirror))
            self._looked.set()
            self._stop.wait(self._interval_s)

    def _log(self, found: MirrorPass) -> None:
        for each in found.copied:
            fields = {"model": each.model, "version": each.version, "digest": each.digest}
            _log.info("version_copied", extra={**fields, "size_bytes": each.size_bytes})
        for name in found.removed:
            _log.info("copy_removed", extra={"copy": name})
        for problem in found.problems:
            if problem not in self._problems:
                _log.warning("store_problem", extra={"reason": problem})
        if self._problems and not found.problems:
            _log.info("store_recovered")
        self._problems = found.problems


def _look(mirror: Mirror) -> MirrorPass:
    try:
        return mirror.look()
    except (LenserveError, OSError) as error:
        return MirrorPass(problems=[str(error)])
    except Exception as error:  # noqa: BLE001 - the thread lives on
        _log.exception("mirror_failed")
        return MirrorPass(problems=[f"{type(error).__name__}: {error}"])
