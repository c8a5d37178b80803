"""The refreshes that run: at most one at a time for each model, and which of them hang.

Independent of what a refresh does.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from functools import partial

from serving.models.progress import Progress

_STUCK_LOOKS = 5

_log = logging.getLogger(__name__)


class Refreshes:
    """Refreshes by model. `overdue` are the models whose refresh hangs; any thread may copy it."""

    def __init__(
        self,
        refresh: Callable[[str], Coroutine[object, object, None]],
        *,
        start: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        on_overdue: Callable[[str, str], None],
    ) -> None:
        """Store the options.

        Args:
            refresh: refreshes a model.
            start: starts a task, and cancels it at the end.
            on_overdue: called with a model whose refresh hangs, and the reason.
        """
        self.overdue: set[str] = set()
        self._refresh = refresh
        self._start = start
        self._on_overdue = on_overdue
        self._running: dict[str, asyncio.Task[None]] = {}
        self._since_s: dict[str, float] = {}

    def __contains__(self, name: object) -> bool:
        """Whether a model is being refreshed."""
        return name in self._running

    def names(self) -> list[str]:
        """Return the models that are being refreshed, sorted. Any thread may call this."""
        return sorted(self._running)

    def begin(self, name: str) -> asyncio.Task[None]:
        """Refresh a model that is not being refreshed."""
        self._running[name] = refresh = self._start(self._refresh(name))
        self._since_s[name] = time.monotonic()
        refresh.add_done_callback(partial(self._end, name))
        return refresh

    async def until_ended(self, name: str) -> None:
        """Wait until no refresh of this model runs."""
        while name in self._running:
            await asyncio.wait([self._running[name]])

    async def wait(self, *, timeout_s: float) -> None:
        """Wait for all that run now, but not for ever."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_s)

    async def wait_while_useful(
        self, *, stuck_s: float, patience_s: float, give_up: Callable[[], bool]
    ) -> None:
        """Wait for all as long as that helps: while one ends, or this process works.

        Args:
            stuck_s: seconds of neither, after which `give_up` is called.
            patience_s: the same in which none ends; the process may work on calls.
            give_up: lets the others go on; returns False if that cannot help either.
        """
        look_s, looks, progress = stuck_s / _STUCK_LOOKS, 0, Progress()
        while self._running:
            ended, _ = await asyncio.wait(self._running.values(), timeout=look_s)
            looks += 1
            if ended:
                looks = 0
                progress.restart()
            elif progress.idle_looks() >= _STUCK_LOOKS or looks * look_s >= patience_s:
                looks = 0
                progress.restart()
                if not give_up():
                    return

    def note_overdue(self, *, limit_s: float, loading: Collection[str]) -> None:
        """Log the models whose folder hangs, each once.

        Args:
            limit_s: seconds that a folder may take.
            loading: models of which a version loads, which may take longer.
        """
        late_s = time.monotonic() - limit_s
        for name, since_s in self._since_s.items():
            if since_s <= late_s and name not in loading and name not in self.overdue:
                self.overdue.add(name)
                reason = f"reading its folder has taken more than {limit_s:g} s: check its volume"
                _log.error("model_overdue", extra={"model": name, "reason": reason})
                self._on_overdue(name, reason)

    def _end(self, name: str, _: asyncio.Task[None]) -> None:
        del self._running[name], self._since_s[name]
        self.overdue.discard(name)
