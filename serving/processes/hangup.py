"""SIGHUP: reads changed files at once, and never ends the server: not when its terminal closes, either."""

import asyncio
import signal
from collections.abc import Awaitable, Callable


def ignore_hangups() -> None:
    """Survive SIGHUP from now on. By default it would end the process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def handle_hangups(handle: Callable[[], Awaitable[None]]) -> None:
    """Call `handle` after each SIGHUP, or once after several, until cancelled."""
    hung_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    try:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await handle()
    finally:
        ignore_hangups()
