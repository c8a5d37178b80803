"""Remote engines against a device server: real sockets and memory, and networks behind a gate."""

import asyncio
import errno
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from serving.batching.backlog import Backlog
from serving.batching.batcher import Batcher, BatchRun
from serving.batching.policy import BatchPolicy
from serving.bundle.images import Pixels
from serving.engine.base import Engine, Output
from serving.engine.onnx import OnnxEngine
from serving.engine.remote import client as remote_engine
from serving.engine.remote.client import RemoteEngine
from serving.engine.remote.protocol import MAX_TEXT_BYTES
from serving.errors import BundleError, EngineError, ModelUnavailable
from serving.processes.device_server import DeviceServer
from tests.colours import Publish
from tests.serving.engines import CPU, FakeEngine
from tests.serving.log_events import LogEvents

LARGEST = 8


class Rig:
    """A device server whose engines echo, and the socket that outlives it."""

    def __init__(self, folder: Path, engine: FakeEngine) -> None:
        self.engine = engine
        self.network: Engine = engine  # what is loaded
        self.path = folder / "device_server.sock"
        self.file = folder / "model.onnx"
        self.file.write_bytes(b"")
        self.loads = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.device_server: DeviceServer | None = None

    def load(self, file: Path) -> Engine:
        """The device server's function for a file."""
        if file.name == "broken.onnx":
            raise BundleError(f"{file} cannot be loaded: it is broken")
        if file.name == "wordy.onnx":
            raise BundleError(f"{file} cannot be loaded: {'é' * MAX_TEXT_BYTES}")
        if file.name == "symbolic.onnx":
            np.zeros((1, "height", "width", 3), np.uint8)  # type: ignore[type-var]
        self.loads += 1
        return FlatEngine() if file.name == "flat.onnx" else self.network

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[DeviceServer]:
        """Serve, and die at the end: connections are cut."""
        self.device_server = DeviceServer(self.load, BatchPolicy(LARGEST))
        serving = asyncio.create_task(self.device_server.serve(self.listener))
        try:
            yield self.device_server
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    async def connect(self, file: Path | None = None) -> RemoteEngine:
        """The engine of one worker."""
        return await asyncio.to_thread(RemoteEngine.load, file or self.file, device_server=self.path)


class FlatEngine:
    """Its probabilities have one dimension: not a network of this project."""

    max_images_on_loop = 0

    def run(self, images: Pixels) -> Output:
        """(N,) and (N, 1)."""
        return Output(np.ones(len(images), np.float32), np.ones((len(images), 1), np.float32))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A device server of engines that echo; those with 13 fail."""
    rig = Rig(tmp_path, FakeEngine(poison=[13]))
    yield rig
    rig.listener.close()


def _images(*samples: int) -> Pixels:
    return np.full((len(samples), 4, 5, 3), np.array(samples, np.uint8).reshape(-1, 1, 1, 1))


def _said(output: Output) -> list[int]:
    assert np.array_equal(output.embedding, -output.probabilities)
    return output.probabilities[:, 0].astype(int).tolist()


async def test_every_run_of_every_worker_gets_its_own_answer(rig: Rig) -> None:
    """Six workers at once, and batches of every size, which are joined at random."""
    random = np.random.default_rng(0)
    async with rig.serving() as device_server:
        engines = [await rig.connect() for _ in range(6)]

        async def run_often(engine: RemoteEngine) -> None:
            for _ in range(30):
                samples = random.integers(20, 256, random.integers(1, LARGEST + 1)).tolist()
                assert _said(await asyncio.to_thread(engine.run, _images(*samples))) == samples

        await asyncio.wait_for(asyncio.gather(*map(run_often, engines)), 60)
        assert rig.loads == 1
        assert max(map(len, rig.engine.runs)) <= LARGEST
        assert sum(map(len, rig.engine.runs)) > len(rig.engine.runs)
        engines.clear()
        gc.collect()
        await asyncio.wait_for(device_server.wait_until_unused(), 20)


async def test_a_network_that_no_worker_uses_is_closed_in_a_thread(
    rig: Rig, publish: Publish, log_events: LogEvents
) -> None:
    """On CUDA, closing waits for captures. Other workers are answered during it, and a stop waits for it."""
    threads = list[threading.Thread]()

    class Noted(OnnxEngine):
        def close(self) -> None:
            threads.append(threading.current_thread())
            super().close()

    network = Noted.load(publish().model_file, CPU, threads=1, max_batch_size=LARGEST)
    rig.network = network
    async with rig.serving() as device_server:
        engine = await rig.connect()
        images = np.zeros((2, 8, 8, 3), np.uint8)
        assert len((await asyncio.to_thread(engine.run, images)).probabilities) == 2
        assert not threads
        del engine
        gc.collect()
        await asyncio.wait_for(device_server.wait_until_unused(), 20)
    assert network._session is None
    (event,) = log_events.named("network_unloaded")
    assert event.file == str(rig.file)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_failed_batch_fails_no_other(rig: Rig) -> None:
    """Another worker's batch that was joined with it is answered, and the connection stays open."""
    async with rig.serving():
        busy, good, bad = [await rig.connect() for _ in range(3)]
        rig.engine.gate.clear()
        first = asyncio.ensure_future(asyncio.to_thread(busy.run, _images(1)))
        assert await asyncio.to_thread(rig.engine.entered.wait, 20)
        others = [asyncio.to_thread(engine.run, _images(n)) for engine, n in ((good, 2), (bad, 13))]
        waiting = asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)
        rig.engine.gate.set()
        assert _said(await first) == [1]
        answered, failed = await asyncio.wait_for(waiting, 20)
        assert isinstance(answered, Output)
        assert _said(answered) == [2]
        assert isinstance(failed, EngineError)
        assert "is poisoned" in str(failed)
        assert _said(await asyncio.to_thread(bad.run, _images(3))) == [3]


async def test_a_file_that_cannot_be_loaded_is_refused_with_the_device_servers_reason(rig: Rig) -> None:
    """The error is the one that loading in the worker would raise."""
    async with rig.serving() as device_server:
        broken = rig.file.with_name("broken.onnx")
        with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded: No such file"):
            await rig.connect(broken)
        broken.write_bytes(b"")
        with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded: it is broken"):
            await rig.connect(broken)
        assert not device_server.loaded


@pytest.mark.parametrize("folder", ["a", "ab"])
async def test_a_reason_that_is_too_long_is_cut(rig: Rig, folder: str) -> None:
    """Also in the middle of a character."""
    file = rig.file.parent / folder / "wordy.onnx"
    file.parent.mkdir()
    file.write_bytes(b"")
    async with rig.serving():
        with pytest.raises(BundleError, match=r"wordy\.onnx cannot be loaded: é{30000}") as refused:
            await rig.connect(file)
    assert len(str(refused.value)) < MAX_TEXT_BYTES


async def test_a_file_name_may_be_any_bytes(rig: Rig) -> None:
    """Linux allows it: the file is loaded, or the reason names it."""
    file = rig.file.with_name(os.fsdecode(b"caf\xe9.onnx"))
    async with rig.serving():
        with pytest.raises(BundleError, match=r"caf\?\.onnx cannot be loaded: No such file"):
            await rig.connect(file)
        file.write_bytes(b"")
        assert _said(await asyncio.to_thread((await rig.connect(file)).run, _images(5))) == [5]


@pytest.mark.parametrize("name", ["symbolic.onnx", "flat.onnx"])
async def test_an_unexpected_error_reaches_only_its_worker(
    rig: Rig, log_events: LogEvents, name: str
) -> None:
    """While loading or running: other workers are served, and the traceback is logged."""
    file = rig.file.with_name(name)
    file.write_bytes(b"")
    async with rig.serving() as device_server:
        other = await rig.connect()
        (loaded,) = device_server.loaded.values()
        if name == "symbolic.onnx":
            with pytest.raises(BundleError, match=r"symbolic\.onnx cannot be loaded: 'str' object"):
                await asyncio.wait_for(rig.connect(file), 20)
        else:
            engine = await rig.connect(file)
            with pytest.raises(EngineError, match="the network failed: tuple index out of range"):
                await asyncio.wait_for(asyncio.to_thread(engine.run, _images(1)), 20)
        assert _said(await asyncio.to_thread(other.run, _images(2))) == [2]
        assert loaded.users == 1  # by the connection that was there before
    (record,) = log_events.named("unforeseen_error")
    assert record.exc_info


async def test_the_device_server_waits_for_free_descriptors(
    rig: Rig, refuse_accepts: Callable[[], list[OSError]], log_events: LogEvents
) -> None:
    """New connections wait, and open ones are served."""
    refusals = refuse_accepts()
    async with rig.serving():
        engine = await asyncio.wait_for(rig.connect(), 20)
        refusals.append(OSError(errno.ENFILE, "Too many open files in system"))
        others = [await asyncio.wait_for(rig.connect(), 20) for _ in range(2)]
        for each in (engine, *others):
            assert _said(await asyncio.to_thread(each.run, _images(4))) == [4]
    assert len(log_events.named("cannot_accept")) == 2


async def test_a_run_is_retried_on_the_successor_of_a_device_server_that_dies(rig: Rig) -> None:
    """The images are still in the memory; workers that call meanwhile wait."""
    async with rig.serving():
        engine = await rig.connect()
        rig.engine.gate.clear()
        running = asyncio.ensure_future(asyncio.to_thread(engine.run, _images(5, 6)))
        assert await asyncio.to_thread(rig.engine.entered.wait, 20)
    assert not running.done()
    rig.engine.gate.set()
    async with rig.serving():
        assert _said(await asyncio.wait_for(running, 20)) == [5, 6]
    assert rig.loads == 2


async def test_a_run_that_waits_for_a_successor_is_left_out_of_the_estimate(rig: Rig) -> None:
    """Otherwise calls would be refused after a replacement, as if the network had become slow."""
    backlog, metered = Backlog(), list[BatchRun]()
    async with AsyncExitStack() as stack:
        async with rig.serving():
            engine = await rig.connect()
            batcher = await stack.enter_async_context(
                Batcher(engine.run, BatchPolicy(LARGEST), metered.append, backlog=backlog)
            )
            await batcher.submit(_images(1))
            before = (backlog.run_s, backlog.start_s)
            rig.engine.entered.clear()
            rig.engine.gate.clear()
            running = batcher.submit(_images(5, 6))
            assert await asyncio.to_thread(rig.engine.entered.wait, 20)
        rig.engine.gate.set()
        async with rig.serving():
            assert _said(await asyncio.wait_for(running, 20)) == [5, 6]
            assert before[0] > 0
            assert (backlog.run_s, backlog.start_s) == before
            assert [run.images for run in metered] == [1, 2]
            assert not (await batcher.submit(_images(7))).interrupted
            assert (backlog.run_s, backlog.start_s) != before


async def test_without_a_socket_the_model_is_unavailable(rig: Rig) -> None:
    """Without a supervisor there is no device server, and a worker that drains fails at once."""
    async with rig.serving():
        engine = await rig.connect()
        rig.listener.close()
        rig.path.unlink()
    with pytest.raises(ModelUnavailable, match="the device server does not answer"):
        await asyncio.to_thread(engine.run, _images(1))


async def test_a_connection_waits_for_a_place_in_the_backlog(rig: Rig) -> None:
    """Many workers connect to a new device server at once."""
    with _full(rig):
        connecting = asyncio.ensure_future(rig.connect())
        async with rig.serving():
            engine = await asyncio.wait_for(connecting, 20)
            assert _said(await asyncio.to_thread(engine.run, _images(3))) == [3]


async def test_a_connection_waits_for_the_backlog_with_a_limit(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no device server accepts it, the model is unavailable."""
    monkeypatch.setattr(remote_engine, "_LOAD_TIMEOUT_S", 0.05)
    with _full(rig):
        connecting = asyncio.ensure_future(rig.connect())
        try:
            with pytest.raises(ModelUnavailable, match="Resource temporarily unavailable"):
                await asyncio.wait_for(connecting, 20)
        finally:
            rig.listener.close()  # whoever waits for ever is refused


async def test_workers_that_close_connections_early_leave_nothing_behind(rig: Rig) -> None:
    """No descriptor, mapping or network stays."""
    async with rig.serving() as device_server:
        stays = await rig.connect()
        await asyncio.to_thread(stays.run, _images(1))
        gc.collect()
        before = _held()
        for _ in range(20):
            engine = await rig.connect()
            assert _said(await asyncio.to_thread(engine.run, _images(7))) == [7]
            del engine
        (loaded,) = device_server.loaded.values()
        async with asyncio.timeout(20):
            while loaded.users > 1:
                await asyncio.to_thread(gc.collect)
        gc.collect()
        assert _held() == before
        assert _said(await asyncio.to_thread(stays.run, _images(9))) == [9]


@contextmanager
def _full(rig: Rig) -> Iterator[None]:
    """Fill the backlog with other connections."""
    rig.listener.listen(0)
    with ExitStack() as stack:
        with suppress(BlockingIOError):
            while True:
                stranger = stack.enter_context(socket.socket(socket.AF_UNIX))
                stranger.settimeout(0)
                stranger.connect(str(rig.path))
        yield


def _held() -> tuple[int, int]:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return descriptors, Path("/proc/self/maps").read_text().count("memfd:lenserve")
