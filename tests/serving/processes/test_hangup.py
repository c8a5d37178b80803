"""SIGHUP to real servers: they read what has changed, and none of their processes ends."""

import os
import signal
from pathlib import Path

import pytest

from serving.client.client import CallFailed, Client
from serving.rpc.bearer_tokens import hash_token
from tests.colours import Publish
from tests.servers import StartServer

ONLY_WHEN_TOLD = ("--poll-interval-s", "3600")
RED = b"P6 1 1 255 \xff\0\0"


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _tree(int(child)))]


@pytest.mark.parametrize("options", [(), ("--workers", "2", "--device-process")])
def test_sighup_reads_files_and_ends_no_process(
    publish: Publish, start_server: StartServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """To the process that an operator has started, and to all at once, as when a terminal closes."""
    publish()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens]\n"{hash_token("old")}" = ["*"]\n')
    server = start_server("--token-file", str(tokens), *ONLY_WHEN_TOLD, *options)
    processes = _tree(server.process.pid)
    publish()
    tokens.write_text(f'[tokens]\n"{hash_token("new")}" = ["*"]\n')

    serving = 2 if options else 1
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("version_serving", version=2, times=serving)
    server.wait_for("files_reloaded", times=serving)
    publish()
    for _ in range(3):
        for pid in processes:
            os.kill(pid, signal.SIGHUP)
    server.wait_for("version_serving", version=3, times=serving)

    with Client(server.grpc, token="new") as client:  # noqa: S106
        assert client.classify(RED, model="colours").version == 3
    with Client(server.grpc, token="old") as client, pytest.raises(CallFailed, match="UNAUTHENTICATED"):  # noqa: S106
        client.classify(RED, model="colours")
    assert _tree(server.process.pid) == processes
    assert server.stop() == 0
