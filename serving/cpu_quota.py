"""How many cores this process may use: those of its affinity, or fewer if its control group has a quota.

A container with `--cpus 2` or a CPU limit of Kubernetes sees all cores of its machine. With a thread for each
of them it uses up its quota early in every period of 100 ms, and stands still for the rest.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cores(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Count the cores, at least 1; a part of a core counts as one, as in Go, Java and .NET.

    Args:
        cgroups: where the control groups are mounted.
        membership: lists the groups of this process (cgroups(7)).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(cgroups, membership))))


def cpu_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Return the lowest quota of the process's groups and their ancestors, in cores; infinity without one."""
    return min((_quota(folder) for folder in _folders(cgroups, membership)), default=math.inf)


def _folders(cgroups: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the groups that may limit CPU time, of both versions of control groups.

    In a container the path is often that of the machine, of which only the last part is mounted, as the root.
    """
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers or "cpu" in controllers.split(","):
            mounts = (
                [cgroups, cgroups / "unified"]
                if not controllers
                else [cgroups / controllers, cgroups / "cpu"]
            )
            for mount in mounts:
                group = mount / path.lstrip("/")
                yield from (each for each in (group, *group.parents) if each.is_relative_to(mount))


def _quota(folder: Path) -> float:
    # cpu.max, "MAX PERIOD", is version 2; the other two are version 1, where -1 means that there is none.
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return math.inf
    return int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
