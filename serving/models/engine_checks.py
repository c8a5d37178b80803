"""Proves engines again that fail or give invalid outputs, and finds those that hang. Independent of files."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine

from serving.models.versions import Version

PROOF_PAUSE_S = 10.0  # between two of these proofs: images that provoke such outputs must not cost more
HUNG_RUN_S = 60.0
_INVALID_OUTPUTS = 3  # outputs that cannot be right, before an engine is proven again

_log = logging.getLogger(__name__)


class EngineChecks:
    """Marks versions broken whose engine no longer works."""

    def __init__(
        self,
        why_broken: Callable[[Version], Awaitable[str]],
        *,
        start: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        on_change: Callable[[str], None],
        proof_pause_s: float,
        hung_run_s: float,
        patience_s: float,
    ) -> None:
        """Store the options.

        Args:
            why_broken: proves the engine of a version.
            start: starts a task, and cancels it at the end.
            on_change: called with the model of a version that is marked.
            proof_pause_s: seconds between two proofs of an engine that gives invalid outputs.
            hung_run_s: seconds after which a batch that has not ended makes its version broken.
            patience_s: seconds that a request waits for a proof: reading golden examples may hang.
        """
        self._why_broken = why_broken
        self._start = start
        self._on_change = on_change
        self._proof_pause_s = proof_pause_s
        self._hung_run_s = hung_run_s
        self._patience_s = patience_s

    async def check(self, version: Version) -> None:
        """Prove an engine after it failed on valid input, once for all requests that wait for it."""
        await asyncio.wait([self._check(version)], timeout=self._patience_s)

    def note_invalid_output(self, version: Version) -> None:
        """Count an output that cannot be right. After a few, prove the engine again, but not all the time."""
        version.invalid_outputs += 1
        now_s = time.monotonic()
        if version.invalid_outputs >= _INVALID_OUTPUTS and now_s >= version.next_proof_s:
            _log.warning("invalid_outputs", extra=version.log_fields(outputs=version.invalid_outputs))
            version.invalid_outputs, version.next_proof_s = 0, now_s + self._proof_pause_s
            self._check(version)

    async def watch_runs(self, versions: Collection[Version]) -> None:
        """Mark versions broken whose network does not finish a batch: a device may hang for ever."""
        while True:
            await asyncio.sleep(self._hung_run_s / 10)
            for version in versions:
                if version.batcher.running_s > self._hung_run_s:
                    self._break(version, f"a batch has not ended after {self._hung_run_s:g} s")

    def _check(self, version: Version) -> asyncio.Task[None]:
        if version.check is None or version.check.done():
            version.check = self._start(self._prove(version))
        return version.check

    async def _prove(self, version: Version) -> None:
        self._break(version, await self._why_broken(version))

    def _break(self, version: Version, reason: str) -> None:
        """Mark a version broken, unless it is already or there is no reason."""
        if reason and not version.broken:
            version.broken = reason
            _log.error("version_broken", extra=version.log_fields(reason=reason))
            self._on_change(version.bundle.model)
