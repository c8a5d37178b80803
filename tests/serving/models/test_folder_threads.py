"""Folders that hang take threads, and no places."""

import asyncio
import threading

from serving.models.folder_threads import FolderThreads


async def test_calls_that_hang_stop_no_others() -> None:
    """However many; their results come in the end."""
    threads, gate = FolderThreads(parallel=2, late_s=0.01), threading.Event()
    hanging = [threads.start(lambda: gate.wait(timeout=30)) for _ in range(40)]
    assert await asyncio.wait_for(threads.run(lambda: "read"), 10) == "read"
    gate.set()
    assert all(await asyncio.gather(*hanging))
    await threads.close()


async def test_only_so_many_calls_run_at_once_and_leave_their_place_once() -> None:
    """Those that are fast; a failure leaves it too."""
    threads, running, most, lock = FolderThreads(parallel=2, late_s=3600), 0, 0, threading.Lock()

    def count(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        if number % 2:
            raise OSError("unreadable")

    results = await asyncio.gather(
        *(threads.run(lambda number=number: count(number)) for number in range(20)),  # type: ignore[misc]
        return_exceptions=True,
    )
    assert most == 2
    assert len([each for each in results if isinstance(each, OSError)]) == 10
    await threads.close()


async def test_closing_waits_for_no_thread() -> None:
    """It may hang for ever."""
    threads, gate = FolderThreads(), threading.Event()
    hanging = threads.start(lambda: gate.wait(timeout=30))
    await asyncio.sleep(0)
    await asyncio.wait_for(threads.close(), 10)
    assert hanging.cancelled()
    gate.set()
