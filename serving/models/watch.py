"""Refreshes at fixed times, and logs every new problem once. Knows no model."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


async def watch(
    refresh: Callable[[], Awaitable[None]], interval_s: float, after_refresh: Callable[[], None]
) -> None:
    """Refresh now and at every multiple of the interval, until cancelled.

    Args:
        refresh: looks at the repository. It may fail: the next one may succeed.
        interval_s: on the clock that all processes of a machine share, so that all workers refresh at once.
        after_refresh: called after each, also after one that failed.
    """
    problem = ""
    while True:
        try:
            await refresh()
        except Exception as error:  # noqa: BLE001 - whatever failed, served versions stay and the next refresh may succeed
            if str(error) != problem:
                problem = str(error)
                unexpected = not isinstance(error, OSError)
                _log.warning("repository_unreadable", extra={"reason": problem}, exc_info=unexpected)
        else:
            problem = ""
        after_refresh()
        await asyncio.sleep(interval_s - time.monotonic() % interval_s)
