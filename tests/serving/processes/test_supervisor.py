"""Several workers in real processes: they share counters, reload together, die alone and stop together."""

import asyncio
import json
import os
import re
import select
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.bundle import Repository
from serving.bundle.images import Pixels
from serving.client.client import AsyncClient
from serving.metrics.shared_counts import CountsMemory
from serving.pb.inference import grpc_service_pb2 as inference
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.colours import Publish
from tests.servers import HangLoad, ServerProcess, StartServer

CLASSIFY = "/lenserve.v1.Classifier/Classify"
CLASSIFIED = f'lenserve_requests_total{{code="OK",method="{CLASSIFY}"}}'
STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
CONNECTIONS = 24  # over grpc dealt out at random: all to one of two workers once in eight million runs
CALLERS = 8

StartWorkers = Callable[..., Awaitable[ServerProcess]]
RunWorkers = Callable[..., Awaitable[tuple[int | None, list[str]]]]


@pytest.fixture
async def start_workers(start_server: StartServer) -> StartWorkers:
    """Start `lenserve serve --workers 2`, and wait until it is ready."""

    async def start(*options: str) -> ServerProcess:
        return await asyncio.to_thread(start_server, "--workers", "2", "--poll-interval-s", "0.05", *options)

    return start


class TestTogether:
    """Every worker answers for all of them."""

    @pytest.mark.parametrize("transport", ["h2", "grpc"])
    async def test_counters_and_statistics_are_those_of_all_workers(
        self, publish: Publish, start_workers: StartWorkers, transport: str
    ) -> None:
        """Connections spread over both; /metrics and ModelStatistics give the sum."""
        publish()
        server = await start_workers("--transport", transport)
        async with _connections(server.grpc) as channels:
            for channel in channels:
                assert (await _classify(channel)).predictions[0].ranking.labels[0].label == "green"
            await _until_scraped(server, f"{CLASSIFIED} {CONNECTIONS}.0")
            await _until_scraped(
                server, f'nv_inference_request_success{{model="colours",version="1"}} {CONNECTIONS}.0'
            )
            statistics = [await _statistics(channel) for channel in channels[:4]]

        assert [each.model_stats[0].inference_count for each in statistics] == [CONNECTIONS] * 4
        shares = [_calls(server, worker) for worker in (1, 2)]
        assert sum(shares) == CONNECTIONS
        if transport == "h2":
            assert shares[0] == shares[1]
        else:
            assert min(shares) > 0

    async def test_connections_are_distributed_evenly_and_workers_do_the_tls_handshake(
        self, publish: Publish, start_workers: StartWorkers, certificates: Path
    ) -> None:
        """The supervisor passes raw connections; the workers hold the keys and do the TLS handshake."""
        publish()
        server = await start_workers(
            *("--tls-cert-file", str(certificates / "server.pem")),
            *("--tls-key-file", str(certificates / "server.key")),
        )
        trust = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        async with _connections(server.grpc, trust) as channels:
            for channel in channels:
                await _classify(channel)
            await _until_scraped(server, f"{CLASSIFIED} {CONNECTIONS}.0")
        assert [_calls(server, worker) for worker in (1, 2)] == [CONNECTIONS / 2] * 2

    async def test_a_new_version_reaches_every_worker(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """Each worker logs it, and no client gets the old version afterwards."""
        publish()
        server = await start_workers()
        assert server.event("listening")["workers"] == 2
        assert server.event("ready")["models"] == "colours@1"
        publish(rotate=1)
        serving = await asyncio.to_thread(server.wait_for, "version_serving", times=2, version=2)
        assert {event["worker"] for event in serving} == {1, 2}
        async with _connections(server.grpc) as channels:
            answers = [await _classify(channel) for channel in channels]
        assert {answer.version for answer in answers} == {2}


class TestDeath:
    """One worker dies, the others continue."""

    async def test_a_killed_worker_is_replaced_and_no_client_notices(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """Callers never pause, each on its own connection, while each worker is killed in turn."""
        publish()
        server = await start_workers()
        done = asyncio.Event()

        async def call_until_done(client: AsyncClient) -> int:
            calls = 0
            while not done.is_set():
                assert (await client.classify(_green(), model="colours")).top.label == "green"
                calls += 1
            return calls

        async with AsyncClient(server.grpc) as client:
            callers = [asyncio.ensure_future(call_until_done(client)) for _ in range(CALLERS)]
            for worker, pid in enumerate(_workers(server), 1):
                os.kill(pid, signal.SIGKILL)
                (died,) = await asyncio.to_thread(server.wait_for, "worker_died", worker=worker)
                assert died["reason"] == "signal 9 (SIGKILL)"
                await asyncio.to_thread(server.wait_for, "listening", times=2, worker=worker)
            done.set()
            assert min(await asyncio.wait_for(asyncio.gather(*callers), 30)) > 0
        lines = (await _get(server.http, "/metrics"))[1].splitlines()
        assert 'lenserve_worker_deaths_total{worker="1"} 1.0' in lines
        assert 'lenserve_worker_deaths_total{worker="2"} 1.0' in lines

    async def test_a_dead_worker_makes_the_server_neither_dead_nor_unready_while_another_serves(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """A metric shows it. Without any worker it is not ready, but alive. Counters are kept."""
        publish()
        server = await start_workers()
        async with _connections(server.grpc) as channels:
            for channel in channels:
                await _classify(channel)
        await _until_scraped(server, f"{CLASSIFIED} {CONNECTIONS}.0")
        first, second = _workers(server)
        os.kill(second, signal.SIGKILL)
        await asyncio.to_thread(server.wait_for, "worker_died")
        probes = [await _get(server.http, path) for path in ("/readyz", "/livez")]
        lines = (await _get(server.http, "/metrics"))[1].splitlines()
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(server.wait_for, "worker_died", times=2)
        code, problem = await _get(server.http, "/readyz")
        assert await _get(server.http, "/livez") == (200, "ok\n")
        assert probes == [(200, "ok\n"), (200, "ok\n")]
        assert {'lenserve_worker_ready{worker="1"} 1.0', "lenserve_ready 1.0"} <= {*lines}
        assert 'lenserve_worker_ready{worker="2"} 0.0' in lines
        assert code == 503
        assert re.fullmatch("worker 1 is (dead|starting); worker 2 is (dead|starting)\n", problem)
        await asyncio.to_thread(server.wait_for, "listening", times=2, worker=2)
        while (await _get(server.http, "/readyz"))[0] != 200:  # its report is on its way
            pass
        assert await _get(server.http, "/livez") == (200, "ok\n")
        await _until_scraped(server, f"{CLASSIFIED} {CONNECTIONS}.0")

    async def test_a_worker_that_hangs_gets_no_connections_and_is_replaced(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """SIGSTOP: new connections go to the other worker, and both probes stay 200."""
        publish()
        server = await start_workers("--hung-after-s", "2")
        os.kill(_workers(server)[0], signal.SIGSTOP)
        while 'lenserve_worker_ready{worker="1"} 0.0' not in (await _get(server.http, "/metrics"))[1]:
            pass
        async with _connections(server.grpc) as channels:
            for channel in channels[:8]:
                assert (await _classify(channel)).version == 1
        assert not list(server.events("worker_hangs"))  # it was only late
        probes = [await _get(server.http, path) for path in ("/readyz", "/livez")]
        assert probes == [(200, "ok\n"), (200, "ok\n")]
        (died,) = await asyncio.to_thread(server.wait_for, "worker_died")
        assert died["reason"] == "it hung: no sign of life for 2.25 s"
        await _until_scraped(server, 'lenserve_worker_hangs_total{worker="1"} 1.0')

    async def test_workers_outlive_their_supervisor_for_no_longer_than_their_calls(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """A killed supervisor leaves no process."""
        publish()
        server = await start_workers("--lame-duck-s", "600")
        workers = [os.pidfd_open(pid) for pid in _workers(server)]
        server.process.kill()
        for worker in workers:
            assert await asyncio.to_thread(select.select, [worker], [], [], 20) == ([worker], [], [])
            os.close(worker)
        assert len(list(server.events("stopped"))) == 2


_WITHOUT_TEMPORARY_FILES = """
import sys, tempfile
from serving.cli import main
tempfile.tempdir = "/nowhere"
sys.exit(main(sys.argv[1:]))
"""


class TestFullDisk:
    """No temporary file can be made: `/tmp` is full or read-only, and everything else too."""

    async def test_workers_serve_and_count(self, publish: Publish, start_server: StartServer) -> None:
        """Their counters are in memory."""
        publish()
        server = await asyncio.to_thread(start_server, "--workers", "2", code=_WITHOUT_TEMPORARY_FILES)
        async with _connections(server.grpc) as channels:
            for channel in channels:
                await _classify(channel)
        await _until_scraped(server, f"{CLASSIFIED} {CONNECTIONS}.0")

    async def test_a_device_server_says_what_it_needs(self, repository: Repository) -> None:
        """Its socket has a path."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _WITHOUT_TEMPORARY_FILES, "serve", "--repository", str(repository.root)),
            *("--device-process", "--grpc-port", "0", "--http-port", "0"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 2
        assert errors.decode().startswith(
            "lenserve serve: --device-process needs a folder for temporary files"
        )


class TestStart:
    """Misconfiguration is reported at start."""

    @pytest.mark.parametrize("option", ["--grpc-port", "--http-port"])
    async def test_a_port_in_use_is_one_line_and_exit_1(
        self, publish: Publish, run_workers: RunWorkers, option: str
    ) -> None:
        """As with one worker."""
        publish()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, lines = await run_workers(option, str(port))
        assert code == 1
        assert len(lines) == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in lines[0]

    async def test_an_invalid_configuration_is_reported_once(
        self, publish: Publish, run_workers: RunWorkers, tmp_path: Path
    ) -> None:
        """The start is not repeated."""
        publish()
        code, lines = await run_workers("--token-file", str(tmp_path / "tokens.toml"))
        assert code == 2
        assert [line for line in lines if line.startswith("lenserve serve: ")] == [lines[-1]]
        assert "tokens.toml" in lines[-1]


class TestStop:
    """All workers stop together and leave nothing behind."""

    async def test_sigterm_answers_every_accepted_call_and_exits_with_0(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """Callers on connections to both workers are answered until their connection announces the stop."""
        publish()
        server = await start_workers()
        answered = asyncio.Semaphore(0)

        async def call_until_refused(channel: grpc.aio.Channel) -> tuple[str, str]:
            while True:
                try:
                    await _classify(channel)
                except grpc.aio.AioRpcError as error:
                    return error.code().name, error.details()
                answered.release()

        async with _connections(server.grpc) as channels:
            callers = [asyncio.ensure_future(call_until_refused(channel)) for channel in channels]
            for _ in range(10 * CONNECTIONS):
                await asyncio.wait_for(answered.acquire(), 20)
            code = await asyncio.to_thread(server.stop)
            ends = await asyncio.wait_for(asyncio.gather(*callers), 20)
        assert code == 0, server.log
        assert set(ends) == {("UNAVAILABLE", "the server is stopping and accepts no new calls: try again")}
        assert {event["worker"] for event in server.events("stopped") if "worker" in event} == {1, 2}
        assert not list(server.events("worker_died"))

    async def test_a_second_signal_ends_all_at_once(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """A second signal skips the lame duck; the exit code is 1, because the stop was not clean."""
        publish()
        server = await start_workers("--lame-duck-s", "600")
        server.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(server.wait_for, "stopping", times=3)
        assert await _get(server.http, "/readyz") == (503, "the server is stopping\n")
        assert await asyncio.to_thread(server.stop) == 1
        assert not [event for event in server.log if "text" in event], server.log

    async def test_a_worker_that_hangs_is_killed(self, publish: Publish, start_workers: StartWorkers) -> None:
        """A stop ends even if a process hangs."""
        publish()
        server = await start_workers("--drain-timeout-s", "0")
        os.kill(_workers(server)[0], signal.SIGSTOP)
        assert await asyncio.to_thread(server.stop) == 0
        assert [event["worker"] for event in server.events("worker_killed")] == [1]

    async def test_a_hanging_load_does_not_delay_a_stop(
        self, publish: Publish, start_workers: StartWorkers, hang_load: HangLoad
    ) -> None:
        """A worker exits after its calls; a hanging load does not need a kill."""
        publish()
        server = await start_workers("--drain-timeout-s", "600")
        await asyncio.to_thread(hang_load, server)
        assert await asyncio.to_thread(server.stop) == 0
        assert list(server.events("threads_left"))
        assert not list(server.events("worker_killed"))


class TestDeviceServer:
    """The device server runs the networks of both workers."""

    async def test_each_network_is_loaded_once_and_swapped_for_all(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """The old network is unloaded when the last worker has switched to the new version."""
        publish()
        server = await start_workers("--device-process", "--keep-warm-s", "0")
        async with _connections(server.grpc) as channels:
            for channel in channels:
                assert (await _classify(channel)).predictions[0].ranking.labels[0].label == "green"
            publish(rotate=1)
            await asyncio.to_thread(server.wait_for, "version_serving", times=2, version=2)
            answers = [await _classify(channel) for channel in channels]
        assert {each.predictions[0].ranking.labels[0].label for each in answers} == {"blue"}
        await asyncio.to_thread(server.wait_for, "network_unloaded")
        loaded = [Path(str(event["file"])).parent.name for event in server.events("network_loaded")]
        assert loaded == ["1", "2"]

    async def test_a_device_server_that_is_killed_is_replaced_and_no_client_notices(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """Calls wait for its successor without retries, and later ones are answered. The probes report it."""
        publish()
        server = await start_workers("--device-process")
        done, answered = asyncio.Event(), asyncio.Semaphore(0)

        async def call_until_done(channel: grpc.aio.Channel) -> int:
            calls = 0
            while not done.is_set():
                assert (await _classify(channel)).predictions[0].ranking.labels[0].label == "green"
                calls += 1
                answered.release()
            return calls

        async with _connections(server.grpc) as channels:
            # A call that connects late would find the queue long, and be refused.
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            callers = [asyncio.ensure_future(call_until_done(channel)) for channel in channels]
            os.kill(_workers(server)[2], signal.SIGKILL)
            await asyncio.to_thread(server.wait_for, "worker_died", worker=0)
            code, why = await _get(server.http, "/readyz")
            assert code == 503
            assert re.fullmatch("the device server is (dead|starting)\n", why)
            await asyncio.to_thread(server.wait_for, "network_loaded", times=2)
            for _ in range(10 * CONNECTIONS):
                await asyncio.wait_for(answered.acquire(), 20)
            done.set()
            assert min(await asyncio.wait_for(asyncio.gather(*callers), 30)) > 0
        assert len(list(server.events("worker_died"))) == 1

    async def test_a_killed_worker_leaves_nothing_in_the_device_server(
        self, publish: Publish, start_workers: StartWorkers
    ) -> None:
        """Its socket and shared memory are closed, and its successor opens new ones."""
        publish()
        server = await start_workers("--device-process")
        worker, _, device_server = _workers(server)
        async with _connections(server.grpc) as channels:
            await asyncio.gather(*map(_classify, channels))
        before = _held(device_server)
        os.kill(worker, signal.SIGKILL)
        await asyncio.to_thread(server.wait_for, "listening", times=2, worker=1)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(_held, device_server) != before:
                pass
        assert len(list(server.events("network_loaded"))) == 1

    async def test_all_stop_together_and_answer_accepted_calls(
        self,
        publish: Publish,
        start_workers: StartWorkers,
        monkeypatch: pytest.MonkeyPatch,
        short_folder: Path,
    ) -> None:
        """The device server exits last, after SIGTERM and after the supervisor's death. No file is left."""
        publish()
        monkeypatch.setenv("TMPDIR", str(short_folder))
        for kill in (False, True):
            server = await start_workers("--device-process")
            processes = [os.pidfd_open(pid) for pid in _workers(server)]
            shared = set(os.listdir("/dev/shm"))  # noqa: PTH208, S108 - names alone
            async with _connections(server.grpc) as channels:
                for channel in channels:
                    await _classify(channel)
                callers = [asyncio.ensure_future(_call_until_refused(channel)) for channel in channels]
                if kill:
                    server.process.kill()
                else:
                    assert await asyncio.to_thread(server.stop) == 0, server.log
                ends = await asyncio.wait_for(asyncio.gather(*callers), 20)
            assert set(ends) == {
                ("UNAVAILABLE", "the server is stopping and accepts no new calls: try again")
            }
            for process in processes:
                assert await asyncio.to_thread(select.select, [process], [], [], 20) == ([process], [], [])
                os.close(process)
            assert set(os.listdir("/dev/shm")) <= shared  # noqa: PTH208, S108
            assert not os.listdir(short_folder)  # noqa: PTH208
            assert not list(server.events("worker_killed"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files: the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@pytest.fixture
def run_workers(repository: Repository) -> RunWorkers:
    """Run `lenserve serve --workers 2` until it exits; return the exit code and the lines on stderr."""

    async def run(*option: str) -> tuple[int | None, list[str]]:
        arguments = {"--repository": str(repository.root), "--grpc-port": "0", "--http-port": "0"}
        arguments |= dict(zip(option[::2], option[1::2], strict=True))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "serving.cli", "serve", "--workers", "2"),
            *(word for pair in arguments.items() for word in pair),
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, errors.decode().splitlines()

    return run


@asynccontextmanager
async def _connections(
    server: str, trust: grpc.ChannelCredentials | None = None
) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels without shared connections."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    open_channel = grpc.aio.insecure_channel if trust is None else partial(_secure_channel, trust)
    channels = [open_channel(server, options=options) for _ in range(CONNECTIONS)]
    yield channels
    for channel in channels:
        await channel.close()


def _secure_channel(
    trust: grpc.ChannelCredentials, server: str, *, options: Sequence[tuple[str, object]]
) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(server, trust, options=options)


async def _classify(channel: grpc.aio.Channel) -> pb.ClassifyResponse:
    pixels = pb.Pixels(height=8, width=8, channels=3, data=_green().tobytes())
    request = pb.ClassifyRequest(model="colours", images=[pb.Image(pixels=pixels)])
    call = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
    return await call(request)


async def _call_until_refused(channel: grpc.aio.Channel) -> tuple[str, str]:
    while True:
        try:
            await _classify(channel)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()


async def _statistics(channel: grpc.aio.Channel) -> inference.ModelStatisticsResponse:
    call = channel.unary_unary(
        STATISTICS,
        inference.ModelStatisticsRequest.SerializeToString,
        inference.ModelStatisticsResponse.FromString,
    )
    return await call(inference.ModelStatisticsRequest(name="colours"))


async def _get(address: str, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def _until_scraped(server: ServerProcess, line: str) -> None:
    """Scrape until the line appears: workers flush their counters a few times a second."""
    async with asyncio.timeout(20):
        while line not in (await _get(server.http, "/metrics"))[1].splitlines():
            pass


def _workers(server: ServerProcess) -> list[int]:
    """Process ids of worker 1, worker 2, and the device server if there is one."""
    pid = server.process.pid
    children = (int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return sorted(children)


def _held(pid: int) -> tuple[int, int]:
    """Descriptors and shared mappings of a process."""
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return descriptors, Path(f"/proc/{pid}/maps").read_text().count("memfd:lenserve")


def _calls(server: ServerProcess, worker: int) -> int:
    """Classify calls that one worker has counted."""
    opened = [
        os.open(link, os.O_RDONLY)
        for link in sorted(Path(f"/proc/{server.process.pid}/fd").iterdir())
        if f"lenserve-counts-{worker} " in str(link.readlink())
    ]
    memory = CountsMemory((opened[0], opened[1]))
    series = json.loads(memory.read())["lenserve_requests"]
    memory.close()
    return int(sum(count for (method, _code), (count,) in series if method == CLASSIFY))


def _green() -> Pixels:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 1] = 255
    return pixels
