"""The unit for systemd: valid, and in agreement with the server."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.settings import ServerSettings
from tests.deploy.rules import DEPLOY

UNIT = DEPLOY / "lenserve.service"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """It knows every key, with this environment's program in place of the installed one."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on the PATH: Debian's package systemd brings it")
    installed = Path(sys.executable)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/lenserve/bin/lenserve", str(installed)))
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_given_the_time_that_draining_takes() -> None:
    """And its variables are settings."""
    lines = [line.split("=", 1) for line in UNIT.read_text().splitlines() if line[:1].isalpha()]
    service = dict(lines)
    assert float(service["TimeoutStopSec"]) > ServerSettings.model_fields["drain_timeout_s"].default
    environment = [value for key, value in lines if key == "Environment"]
    variables = dict(each.split("=") for each in " ".join(environment).split())
    settings = ServerSettings.model_validate(
        {name.removeprefix("LENSERVE_").lower(): value for name, value in variables.items()}
    )
    assert settings.workers == 0
    assert settings.repository_cache == Path("/var/cache") / service["CacheDirectory"]
