"""A real server on what KServe mounts: a version, a model or a repository; by a link; on a read-only root."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.client import Client
from tests.colours import SIDE, Publish
from tests.deploy.rules import DEPLOY
from tests.servers import ServerProcess

SCRIPT = DEPLOY / "serve-mounted.sh"
ROOT = DEPLOY.parent
OPTIONS = ("--grpc-port", "0", "--http-port", "0", "--log-json")
# A mount namespace in which everything is read-only but one folder, and the model is mounted at /mnt.
READ_ONLY = (
    'mount --bind "$1" /mnt && mount -o remount,ro,bind /mnt '
    '&& mount -t tmpfs none "$2" && export TMPDIR="$2" '
    '&& mount -o remount,ro,bind / && shift 2 && exec "$@"'
)

Start = Callable[..., ServerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run the script with these arguments, after a command that prepares its surroundings."""
    started: list[ServerProcess] = []

    def start_mounted(*arguments: str | Path, before: tuple[str | Path, ...] = ()) -> ServerProcess:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MOUNT_TIMEOUT_S": "20",
        }
        process = subprocess.Popen(
            [*before, SCRIPT, *arguments, *OPTIONS],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        server = ServerProcess(process)
        started.append(server)
        server.reader = threading.Thread(target=server.read, daemon=True)
        server.reader.start()
        return server

    yield start_mounted
    for server in started:
        server.process.kill()
        server.process.wait()
        assert server.reader is not None
        server.reader.join()
        assert server.process.stderr is not None
        server.process.stderr.close()


def check(server: ServerProcess, model: str, version: int = 1) -> None:
    """It serves this model, and answers."""
    server.wait_for("ready")
    with Client(server.grpc) as client:
        answer = client.classify(RED, model=model)
    assert (answer.top.label, answer.version) == ("red", version)


def _red() -> bytes:
    from io import BytesIO  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415

    file = BytesIO()
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


RED = _red()


def test_a_version_at_the_mount(start: Start, publish: Publish) -> None:
    """As in an OCI image of one version: it is served by the name that KServe gives."""
    bundle = publish()
    check(start("digits", bundle.folder), "digits")


def test_a_repository_at_the_mount(start: Start, publish: Publish, repository: Repository) -> None:
    """All models, by their own names."""
    publish()
    check(start("any", repository.root), "colours")


def test_a_model_behind_a_link_that_comes_later(
    start: Start, publish: Publish, repository: Repository, tmp_path: Path
) -> None:
    """KServe's sidecar may link after the server has started. Versions keep their numbers."""
    publish()
    publish()
    link = tmp_path / "models"
    server = start("digits", link)
    link.symlink_to(repository.root / "colours")
    check(server, "digits", version=2)


def test_nothing_at_the_mount(start: Start, tmp_path: Path) -> None:
    """It says what to mount, and ends."""
    server = start("digits", tmp_path, before=("env", "MOUNT_TIMEOUT_S=0"))
    assert server.process.wait(timeout=30) == 1
    assert server.reader is not None
    server.reader.join()
    assert f"{tmp_path} is empty or missing after 0 s" in json.dumps(server.log)


def test_a_read_only_root(start: Start, publish: Publish, tmp_path: Path) -> None:
    """Only the folder for temporary files can be written."""
    unshare = shutil.which("unshare")
    if (
        unshare is None
        or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this user cannot make a mount namespace")
    bundle = publish()
    (tmp_path / "writable").mkdir()
    before = (unshare, "-m", "sh", "-c", READ_ONLY, "sh", bundle.folder, tmp_path / "writable")
    check(start("digits", "/mnt", "--workers", "2", before=before), "digits")
