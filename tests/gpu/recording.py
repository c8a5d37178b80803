"""Keeps the result of every test as soon as it is known: a pytest plugin for the part `tests`."""

import os
from pathlib import Path

import pytest

from tests.gpu.rows import Rows

FILE_VARIABLE = "LENSERVE_GPU_ROWS"
DEVICE_VARIABLE = "LENSERVE_GPU_DEVICE"


class _Recorder:
    def __init__(self, file: Path, device: str) -> None:
        self._rows = Rows(file)
        self._device = device
        self._passed: dict[str, float] = {}
        self._skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            reason = str(report.longreprtext).strip().splitlines()[-1:] or ["failed"]
            self._rows.add(name, f"failed in {report.when}", wrong=reason[0][:200])
        elif report.skipped:
            self._skipped[name] = str(report.longrepr)
        elif report.when == "call":
            self._passed[name] = report.duration
        wrong = "a test was skipped: CUDA was asked for" if self._skipped and self._device == "cuda" else ""
        figure = f"{len(self._passed)} passed, {len(self._skipped)} skipped"
        self._rows.add("tests", figure, wrong=wrong, passed=self._passed, skipped=self._skipped)


def pytest_configure(config: pytest.Config) -> None:
    """Record into the file that the environment names."""
    file, device = os.environ[FILE_VARIABLE], os.environ[DEVICE_VARIABLE]
    config.pluginmanager.register(_Recorder(Path(file), device), "lenserve-gpu-rows")
