"""Quotas of control groups, in made-up folders of both versions."""

import math
import os
from pathlib import Path

import pytest

from serving import settings
from serving.cpu_quota import available_cores, cpu_quota
from serving.settings import ServerSettings

CORES = len(os.sched_getaffinity(0))


def _machine(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """The mount of control groups, and /proc/self/cgroup."""
    for name, text in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="a container, version 2"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, math.inf, id="no limit"),
        pytest.param("0::/\n", {}, math.inf, id="no controller"),
        pytest.param(
            "0::/kubepods.slice/pod.slice/container.scope\n",
            {
                "kubepods.slice/pod.slice/cpu.max": "200000 100000\n",
                "kubepods.slice/pod.slice/container.scope/cpu.max": "400000 100000\n",
            },
            2.0,
            id="the lowest of the ancestors",
        ),
        pytest.param(
            "0::/docker/0123\n", {"cpu.max": "50000 50000\n"}, 1.0, id="the path of the machine, not mounted"
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/0123\n3:memory:/docker/0123\n0::/\n",
            {
                "cpu,cpuacct/docker/0123/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/docker/0123/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
            id="version 1",
        ),
        pytest.param(
            "4:cpuacct,cpu:/docker/0123\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3.0,
            id="version 1 in a container",
        ),
        pytest.param("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n"}, math.inf, id="version 1, no limit"),
        pytest.param("0::/\n", {"cpu.max": "1e5 0\n"}, math.inf, id="damaged"),
        pytest.param("\n:\nnothing\n0::/../..\n", {}, math.inf, id="a strange list"),
    ],
)
def test_the_lowest_quota_applies(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float
) -> None:
    """Of the process's own group and those above it."""
    machine = _machine(tmp_path, membership, files)

    assert cpu_quota(*machine) == quota
    assert available_cores(*machine) == (CORES if math.isinf(quota) else min(CORES, math.ceil(quota)))


@pytest.mark.parametrize(
    ("quota", "cores"), [("10000 100000", 1), ("100000 100000", 1), ("max 100000", CORES)]
)
def test_there_is_at_least_one_core(tmp_path: Path, quota: str, cores: int) -> None:
    """A tenth of a core is one thread."""
    assert available_cores(*_machine(tmp_path, "0::/", {"cpu.max": quota})) == cores


def test_no_list_of_groups_is_no_quota(tmp_path: Path) -> None:
    """As on systems without control groups."""
    assert cpu_quota(tmp_path, tmp_path / "missing") == math.inf


def test_one_worker_per_core_means_cores_of_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--workers 0, the threads that decode, and those of the engines."""
    monkeypatch.setattr(settings, "available_cores", lambda: 3)

    assert ServerSettings(repository=tmp_path, workers=0).processes == 3
    assert ServerSettings(repository=tmp_path).cores == 3
    assert ServerSettings(repository=tmp_path).decoders == 3
