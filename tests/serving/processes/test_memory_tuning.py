"""Memory tuning, observed in a child process."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json
from serving import server
from serving.processes.memory_tuning import settle_memory
settle_memory()
print(json.dumps([gc.get_freeze_count(), len(gc.get_objects()), gc.isenabled()]))
"""


def test_imported_objects_are_never_collected() -> None:
    """Imported objects are frozen, and others are collected by `return_memory`."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    frozen, searched, is_automatic = json.loads(done.stdout)
    assert frozen > 10_000
    assert searched < frozen / 100
    assert not is_automatic


LATE_SCRIPT = """
import asyncio, gc, json
from serving.processes.memory_tuning import resident_bytes, return_memory, settle_memory

async def main():
    settle_memory()
    task = asyncio.create_task(return_memory(lambda: True, look_s=0.05))
    await asyncio.sleep(0.1)
    before = resident_bytes()
    held = [bytes(2**14) for _ in range(4000)]
    top = [bytes(2**14) for _ in range(4)]  # above them: glibc itself returns only the end of the heap
    await asyncio.sleep(0.12)  # one or two looks, which find nothing to return
    del held
    async with asyncio.timeout(5):
        while resident_bytes() > before + 16 * 2**20:
            await asyncio.sleep(0.01)
    task.cancel()
    print(len(top))

asyncio.run(main())
"""


def test_memory_that_is_freed_after_a_look_is_returned_too() -> None:
    """What cancelled requests left to threads: 100 MiB stayed, because freed memory does not grow."""
    done = subprocess.run([sys.executable, "-c", LATE_SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "4\n", done.stderr
