"""Describes the machine on which something was measured."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """The machine and the interpreter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )
    return (
        f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"
    )
