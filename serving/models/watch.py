"""Refreshes at fixed times, and logs each new problem once. Independent of models."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serving.limited_files import describe_failure

_log = logging.getLogger(__name__)


async def watch(
    refresh: Callable[[], Awaitable[None]],
    interval_s: float,
    after_refresh: Callable[[str], None] = lambda _: None,
) -> None:
    """Refresh now and at every multiple of the interval, until cancelled.

    Args:
        refresh: reads the repository. It may fail, and is called again at the next time.
        interval_s: measured on a clock that all processes share, so that all workers refresh at the same
            time.
        after_refresh: called after each refresh with the reason why it failed, or nothing.
    """
    problem = ""
    while True:
        try:
            await refresh()
        except Exception as error:  # noqa: BLE001 - served versions stay, and the next refresh may succeed
            if (reason := describe_failure(error)) != problem:
                problem = reason
                unexpected = not isinstance(error, OSError)
                _log.warning("repository_unreadable", extra={"reason": problem}, exc_info=unexpected)
        else:
            problem = ""
        after_refresh(problem)
        await asyncio.sleep(interval_s - time.monotonic() % interval_s)
