"""Dockerfiles: clean by hadolint, in the right order, one user, and a probe that follows the port."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.colours import Publish
from tests.deploy.rules import DEPLOY
from tests.servers import StartServer

DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
OURS = [DEPLOY / "serving.Dockerfile", DEPLOY / "training.Dockerfile"]


def instructions(path: Path) -> list[str]:
    """The instructions of a Dockerfile, each in one line."""
    text = path.read_text(encoding="utf-8").replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    """Not even advice."""
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint on the PATH: `make check-deploy` installs it")
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_change_of_the_source_leaves_the_dependencies(path: Path) -> None:
    """They are installed before the source is copied, and the source without them."""
    lines = instructions(path)
    source = lines.index("COPY serving serving")
    installs = [number for number, line in enumerate(lines) if " install --no-cache-dir" in line]
    assert len(installs) == 2
    assert installs[0] < source < installs[1]
    assert "--no-deps" in lines[installs[1]]
    # setuptools takes what it finds in build/ if that is newer, and the empty package's files are.
    assert lines[installs[0]].endswith("rm -rf build lenserve.egg-info serving training")


def test_server_and_training_are_the_same_user_who_owns_the_models() -> None:
    """By number, as Kubernetes asks for; so either may be the first to use an empty volume."""
    for path in OURS:
        text = "\n".join(instructions(path))
        assert re.search(r"^USER 10001:10001$", text, re.MULTILINE), path
        assert re.search(r"install --directory --owner=10001 --group=10001 /models", text), path


def test_the_probe_follows_the_port(publish: Publish, start_server: StartServer) -> None:
    """The command of HEALTHCHECK, on a real server."""
    (line,) = (each for each in instructions(OURS[0]) if each.startswith("HEALTHCHECK"))
    _, *arguments = json.loads(line.partition(" CMD ")[2])
    publish()
    server = start_server()
    code = {
        port: subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"LENSERVE_HTTP_PORT": port},
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode
        for port in (server.http.rpartition(":")[2], "1")
    }
    assert list(code.values()) == [0, 1]
