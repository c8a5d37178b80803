"""Waits for a condition that no event announces, such as the memory of another process."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, look_s: float = 0.001, limit_s: float = 10.0) -> None:
    """Look every `look_s` until the condition holds; TimeoutError after `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(look_s)
