"""The loads of versions: how many run at once, which take too long, and what has loaded late.

A load that takes too long leaves its place to the next one. What it loads in the end is kept until it is
taken. Independent of files, aliases and what is served. All methods run on the event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from serving.models.versions import Version

_MAX_THREADS = 256  # they start when they are needed; a load that hangs keeps one

_Loading = asyncio.Task[Version | None]

_log = logging.getLogger(__name__)


class Loads:
    """What is loading and what has loaded. Versions in `running` and `overdue` are (model, number)."""

    def __init__(
        self,
        load: Callable[[str, int, Executor], Coroutine[object, object, Version | None]],
        *,
        parallel: int,
        patience_s: float,
        start: Callable[[Coroutine[object, object, Version | None]], _Loading],
        on_change: Callable[[str], None],
        on_late: Callable[[str], None],
        background: Executor | None = None,
    ) -> None:
        """Store the options.

        Args:
            load: loads a version in these threads; returns None if that fails.
            parallel: versions that may load at the same time.
            patience_s: seconds after which a load does not count among these any more.
            start: starts a task, and cancels it at the end.
            on_change: called with a model when one of its versions begins or ends to load.
            on_late: called with a model when a load has ended that took too long.
            background: threads that load after `go_to_background`; None: the same as before.
        """
        self.running: set[tuple[str, int]] = set()  # also those that have loaded late, until they are taken
        self.overdue: set[tuple[str, int]] = set()  # those that take too long
        self.loaded: set[Version] = set()  # and not closed: served, about to be served, or still leased
        self._late: dict[tuple[str, int], Version] = {}
        self._load = load
        self._places = asyncio.Semaphore(parallel)
        self._patience_s = patience_s
        self._start = start
        self._on_change = on_change
        self._on_late = on_late
        self._leaving: set[asyncio.Future[str]] = set()  # of loads that have a place: why they leave it
        # Not the default threads of the event loop, which files and counters need: loads may hang.
        self._foreground: Executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="load")
        self._background = background or self._foreground
        self._threads: Executor = self._foreground

    def go_to_background(self) -> None:
        """Load in the other threads from now on."""
        self._threads = self._background

    def close(self) -> None:
        """Do not wait for threads."""
        for threads in (self._foreground, self._background):
            threads.shutdown(wait=False, cancel_futures=True)

    async def load(self, name: str, number: int) -> Version | None:
        """Load a version that is not running; None if that fails, or takes too long: then it comes late."""
        key = name, number
        async with self._places:
            self.running.add(key)
            self._on_change(name)
            loading = self._start(self._run(key))
            why = await self._wait(loading)
        if loading.done():
            self._end(key)
            return loading.result()
        self.overdue.add(key)
        reason = f"loading it {why}: what was served is served on; check its volume"
        _log.error("version_overdue", extra={"model": name, "version": number, "reason": reason})
        loading.add_done_callback(partial(self._end_late, key))
        return None

    def leave_places(self, why: str) -> bool:
        """Treat all loads that have a place as taking too long; return whether there were any."""
        leaving = [each for each in self._leaving if not each.done()]
        for each in leaving:
            each.set_result(why)
        return bool(leaving)

    def late(self, name: str) -> list[int]:
        """Return the versions of a model that have loaded late and were not taken."""
        return [number for model, number in self._late if model == name]

    def take_late(self, name: str, number: int) -> Version | None:
        """Return a version that has loaded late; None if it has not, or was taken."""
        version = self._late.pop((name, number), None)
        if version is not None:
            self._end((name, number))
        return version

    async def _wait(self, loading: _Loading) -> str:
        """Wait for a load; return why no longer, if it has not ended."""
        leaving = asyncio.get_running_loop().create_future()
        self._leaving.add(leaving)
        try:
            await asyncio.wait(
                [loading, leaving], timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self._leaving.discard(leaving)
        return leaving.result() if leaving.done() else f"has taken more than {self._patience_s:g} s"

    async def _run(self, key: tuple[str, int]) -> Version | None:
        version = await self._load(*key, self._threads)
        if version is not None:
            self.loaded.add(version)
        return version

    def _end(self, key: tuple[str, int]) -> None:
        self.running.discard(key)
        self._on_change(key[0])

    def _end_late(self, key: tuple[str, int], loading: _Loading) -> None:
        if loading.cancelled():
            return
        self.overdue.remove(key)
        version = None if loading.exception() else loading.result()
        if version is None:
            self.running.discard(key)
        else:
            self._late[key] = version
        self._on_late(key[0])
