"""Memory available for decoded images, according to the kernel and the container's limit."""

import re
from contextlib import suppress
from pathlib import Path

GIB = 2**30

_SHARE = 0.5  # fraction of available memory; networks, batches and other programs need the rest
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # cgroup v2; a container sees its own group


def image_limit_bytes(limit_gib: float | None, processes: int = 1) -> int:
    """Return the size above which decoded images are streamed from disk, in bytes.

    Args:
        limit_gib: the recipe's data.memory_limit_gib, per process; None: half of the available memory.
        processes: number of processes that share this machine.
    """
    return int(_SHARE * available_bytes() / processes if limit_gib is None else limit_gib * GIB)


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return the bytes that can be allocated without swapping, within the limits of machine and container."""
    kib = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(encoding="ascii"), re.MULTILINE)
    if kib is None:
        raise AssertionError(f"{meminfo} has no MemAvailable, which Linux reports since 3.14. This is a bug.")
    machine = int(kib[1]) * 1024
    with suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii")
        idle = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)  # page cache, reclaimed on demand
        return min(machine, max(0, limit - used + (int(idle[1]) if idle else 0)))
    return machine
