"""How much memory there is for decoded images, as the kernel or the container's limit says."""

import re
from contextlib import suppress
from pathlib import Path

GIB = 2**30

_SHARE = 0.5  # of what is available: networks, batches and other programs need some too
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # version 2; a container sees its own here


def image_limit_bytes(limit_gib: float | None, processes: int = 1) -> int:
    """Decoded images of more bytes are streamed from disk.

    Args:
        limit_gib: of the recipe, for each process; none: half of what is available now.
        processes: that share this machine.
    """
    return int(_SHARE * available_bytes() / processes if limit_gib is None else limit_gib * GIB)


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """What can be used without pushing anything out, of the machine and of the container."""
    kib = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(encoding="ascii"), re.MULTILINE)
    if kib is None:
        raise AssertionError(f"{meminfo} names no MemAvailable, as Linux has since 3.14. This is a bug.")
    machine = int(kib[1]) * 1024
    with suppress(OSError, ValueError):  # no container, or one without a limit, whose word is "max"
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii")
        idle = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)  # cached files, let go when needed
        return min(machine, max(0, limit - used + (int(idle[1]) if idle else 0)))
    return machine
