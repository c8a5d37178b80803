"""The device server's process and unexpected peers; tests/serving/engine/remote has its networks."""

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from serving.batching.batcher import Batcher
from serving.batching.policy import BatchPolicy
from serving.engine.remote.protocol import RunRequest, SharedMemory
from serving.processes.device_server import DeviceServer, _receive_opening, _SharedNetwork
from serving.processes.messages import WorkerCommand, WorkerReport, to_line
from serving.settings import ServerSettings
from tests.serving.engines import FakeEngine
from tests.serving.log_events import LogEvents

FAILING = """
import sys
from serving.processes import device_server

async def serve(self, listener):
    raise RuntimeError("nobody foresaw this")

device_server.DeviceServer.serve = serve
sys.exit(device_server.main())
"""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the device server's end and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    ours.settimeout(0)
    with ours, theirs:
        yield ours, theirs


async def test_a_device_server_whose_serving_fails_ends(tmp_path: Path) -> None:
    """Its supervisor regards it as ready while it runs, and replaces it when it exits."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "device_server.sock"))
        listener.listen()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FAILING),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
        settings = ServerSettings(repository=tmp_path, device="cpu")
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(to_line(WorkerCommand(worker=0, settings=settings, listener=listener.fileno())))
        try:
            async with asyncio.timeout(30):
                assert WorkerReport.model_validate_json(await process.stdout.readline()) == WorkerReport()
                why = await process.stderr.read()
                assert await process.wait() == 1
        finally:
            process.stdin.close()
            await process.wait()
    assert b"nobody foresaw this" in why


async def test_an_invalid_client_is_dropped_and_the_next_is_served(
    tmp_path: Path, log_events: LogEvents
) -> None:
    """An invalid opening loads nothing, and its shared memory is closed."""
    path = tmp_path / "device_server.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        serving = asyncio.create_task(DeviceServer(lambda _: FakeEngine(), BatchPolicy(1)).serve(listener))
        before = _memories()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(path))
                _open(stranger, b"\xff")
                stranger.settimeout(20)
                assert await asyncio.to_thread(stranger.recv, 1) == b""
        assert _memories() == before
        serving.cancel()
        await asyncio.wait([serving])
    assert len(log_events.named("connection_failed")) == 2


async def test_a_silent_worker_is_watched_only_while_the_device_server_serves(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """The event loop stops watching its descriptor, which another connection may reuse."""
    opening = asyncio.create_task(_receive_opening(ends[0]))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert not asyncio.get_running_loop().remove_reader(ends[0])


async def test_the_memory_of_an_incomplete_connection_is_closed_with_the_device_server(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """The worker has not sent the file name yet."""
    before = _memories()
    opening = asyncio.create_task(_receive_opening(ends[0]))
    _open(ends[1], RunRequest(0, 5, 0, 0).pack())
    async with asyncio.timeout(20):
        while _memories() == before:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert _memories() == before


async def test_a_network_that_does_not_finish_a_batch_is_noticed() -> None:
    """A device may hang for ever, and workers would wait for it."""
    engine, policy = FakeEngine(), BatchPolicy(1)
    engine.gate.clear()
    async with Batcher(engine.run, policy) as batcher:
        device_server = DeviceServer(lambda _: engine, policy)
        device_server.loaded["model.onnx", 0, 0] = _SharedNetwork(batcher, AsyncExitStack())
        hung = asyncio.create_task(device_server.wait_until_hung(0.05))
        run = batcher.submit(np.zeros((1, 1, 1, 1), np.uint8))
        await asyncio.wait_for(hung, 20)
        engine.gate.set()
        await run


def _open(worker: socket.socket, opening: bytes) -> None:
    memory = SharedMemory.create()
    socket.send_fds(worker, [opening], [memory.descriptor])
    memory.close()


def _memories() -> int:
    """Number of shared memory descriptors that this process has open."""
    links = (Path("/proc/self/fd") / each for each in os.listdir("/proc/self/fd"))  # noqa: PTH208
    return sum(each.is_symlink() and "memfd:lenserve" in str(each.readlink()) for each in links)
