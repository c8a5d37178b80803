"""Available memory, as the kernel and the container's limit report it."""

from pathlib import Path

from training.devices.memory import available_bytes, image_limit_bytes

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\n"


def test_the_limit_is_the_recipes_or_half_of_the_available_memory() -> None:
    """The recipe's limit is per process; without one, the processes share half of the available memory."""
    assert image_limit_bytes(0.5, processes=4) == 2**29
    assert image_limit_bytes(0) == 0
    alone, shared = image_limit_bytes(None), image_limit_bytes(None, processes=2)
    assert 0 < shared < alone < available_bytes()


def test_a_container_may_have_less_than_its_machine(tmp_path: Path) -> None:
    """The container's limit less its unreclaimable use; `max`, or missing files, is no limit."""
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text(MEMINFO)
    assert available_bytes(meminfo, cgroup) == 2_048_000_000
    cgroup.mkdir()
    for limit, available in (("max", 2_048_000_000), ("1000000", 800_000), ("300000", 100_000), ("9", 0)):
        (cgroup / "memory.max").write_text(f"{limit}\n")
        (cgroup / "memory.current").write_text("500000\n")
        (cgroup / "memory.stat").write_text("anon 100\ninactive_file 300000\nactive_file 5\n")
        assert available_bytes(meminfo, cgroup) == available
