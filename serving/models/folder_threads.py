"""Threads that read folders; folders that hang do not use up their number.

A volume that does not answer keeps its thread, which nothing can end. Independent of what is read.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_PARALLEL = 16
_LATE_S = 0.5  # a folder is read in milliseconds
_MAX_THREADS = 256  # they start when they are needed; more could leave the process without any

T = TypeVar("T")


class FolderThreads:
    """A limited number of calls at once, not counting those that hang."""

    def __init__(self, *, parallel: int = _PARALLEL, late_s: float = _LATE_S) -> None:
        """Store the options.

        Args:
            parallel: calls at the same time.
            late_s: seconds after which a call does not count among these any more.
        """
        self._places = asyncio.Semaphore(parallel)
        self._late_s = late_s
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="repository")
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in a thread, as soon as there is a place."""
        await self._places.acquire()
        holds_place = True

        def leave_place() -> None:
            nonlocal holds_place
            if holds_place:
                holds_place = False
                self._places.release()

        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._late_s, leave_place)
        try:
            return await loop.run_in_executor(self._threads, function)
        finally:
            timer.cancel()
            leave_place()

    def start(self, function: Callable[[], T]) -> asyncio.Task[T]:
        """Do so in a task, which `close` cancels."""
        task = asyncio.create_task(self.run(function))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel what was started, without waiting for threads."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._threads.shutdown(wait=False, cancel_futures=True)
