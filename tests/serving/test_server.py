"""The server as a whole: when it refuses to start, and how it stops."""

import asyncio
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from serving.admin.http_server import HttpServer
from serving.bundle import Repository
from serving.bundle.images import Pixels
from serving.client.client import AsyncClient, CallFailed
from serving.engine.devices import choose_device, find_cuda
from serving.errors import AddressUnavailable, DeviceUnavailable, UsageError
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.server import Server, run_server
from serving.settings import ServerSettings
from tests.colours import Publish
from tests.servers import HangLoad, Serve, StartServer
from tests.serving.gated_server import GatedServer, ServeGated
from tests.serving.log_events import LogEvents
from tests.serving.stub import Connect

NAME = "colours"
CLASSIFY = "lenserve.v1.Classifier/Classify"
CHECK = "grpc.health.v1.Health/Check"
WATCH = "grpc.health.v1.Health/Watch"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CALLERS = 16


class TestStart:
    """Misconfiguration is reported at start."""

    @pytest.mark.parametrize("port", ["grpc_port", "http_port"])
    async def test_a_port_in_use_is_refused_by_number(self, repository: Repository, port: str) -> None:
        """Half of the traffic would go to another process; nothing is left running."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            settings = _settings(repository.root, **{port: number})
            with pytest.raises(AddressUnavailable, match=f"cannot listen on 127.0.0.1:{number}"):
                async with run_server(settings):
                    pytest.fail("it listens on a port of somebody else")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not _our_threads()

    async def test_a_missing_repository_is_reported_by_name(self, tmp_path: Path) -> None:
        """A mistyped folder is not an empty repository."""
        with pytest.raises(UsageError, match=f"the repository {tmp_path / 'nowhere'} is not a directory"):
            async with run_server(_settings(tmp_path / "nowhere")):
                pytest.fail("it serves nothing")

    async def test_a_missing_token_file_is_reported_by_name(self, repository: Repository) -> None:
        """A server that should require tokens does not start without them."""
        settings = _settings(repository.root, token_file=repository.root / "tokens.toml")
        with pytest.raises(UsageError, match=r"tokens\.toml"):
            async with run_server(settings):
                pytest.fail("it asks nobody")

    @pytest.mark.parametrize("transport", ["h2", "grpc"])
    async def test_a_key_of_another_certificate_is_refused(
        self, repository: Repository, certificates: Path, transport: str
    ) -> None:
        """Otherwise clients would only see failed handshakes."""
        files = {"tls_cert_file": certificates / "server.pem", "tls_key_file": certificates / "client.key"}
        with pytest.raises(UsageError, match="are not a certificate and its key"):
            async with run_server(_settings(repository.root, transport=transport, **files)):
                pytest.fail("it serves nobody")

    async def test_a_repository_that_hangs_at_the_start_does_not_stop_it(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server is alive, and not ready until it has been read."""
        gate, is_dir = threading.Event(), Path.is_dir

        def hang(path: Path) -> bool:
            assert path != repository.root or gate.wait(timeout=30)
            return is_dir(path)

        monkeypatch.setattr(Path, "is_dir", hang)
        async with run_server(_settings(repository.root), repository_limit_s=0.01) as server:
            assert server.models.why_not_ready == "the repository has not been read yet"
            gate.set()
            await asyncio.wait_for(server.models.scanned(), 20)
            assert server.models.ready

    @pytest.mark.skipif(find_cuda()[0] > 0, reason="this machine has a CUDA device")
    @pytest.mark.parametrize("device", ["cuda", "cuda:0"])
    async def test_cuda_without_a_gpu_is_refused_with_the_reason(
        self, repository: Repository, device: str
    ) -> None:
        """It does not fall back to the CPU silently."""
        with pytest.raises(
            DeviceUnavailable, match=f"device {device} was requested, but .*{find_cuda()[1][:12]}"
        ):
            async with run_server(_settings(repository.root, device=device)):
                pytest.fail("it runs on something else")

    async def test_auto_chooses_an_available_device_and_logs_it(
        self, serve: Serve, log_events: LogEvents
    ) -> None:
        """The choice and its reason are logged once and shown in the metrics."""
        async with serve() as server:
            (record,) = log_events.named("device_chosen")
            assert record.device == server.device.name == choose_device("auto", *find_cuda()).name
            assert record.reason.startswith("auto: ")
            labels = {"device": server.device.name, "provider": server.device.provider}
            assert server.metrics.registry.get_sample_value("lenserve_device", labels) == 1


class TestWatching:
    """What is answered is counted."""

    async def test_every_way_to_ask_counts_the_predicted_labels(self, serve: Serve, publish: Publish) -> None:
        """Encoded images, pixels and tensors; several in a request; not those that cannot be decoded."""
        publish()
        red, blue = np.zeros((2, 8, 8, 3), np.uint8)  # (H, W, C)
        red[:, :, 0] = blue[:, :, 2] = 255
        async with serve() as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
            await client.classify(red, model=NAME)
            await client.classify_all([blue, red, b"no image"], model=NAME)
            await server.classifier.infer_tensor(np.stack([blue, blue]), model=NAME)
            counts = {
                label: server.metrics.registry.get_sample_value(
                    "lenserve_predictions_total", {"model": NAME, "version": "1", "label": label}
                )
                for label in ("red", "green", "blue")
            }
        assert counts == {"red": 2, "green": None, "blue": 3}


class TestStop:
    """Readiness drops first, running calls finish, nothing is left behind."""

    async def test_running_calls_end_new_ones_are_rejected_and_watchers_are_notified(
        self, publish: Publish, serve_gated: ServeGated, connect: Connect
    ) -> None:
        """Readiness drops first, a call in the network gets its answer, a Watch stream ends."""
        publish()
        async with serve_gated() as gated:
            server, stub = _server(gated, drain_timeout_s=30), connect(gated.grpc.port)
            watch = stub.stream(WATCH, health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            gated.engine.close()
            running = stub.start(CLASSIFY, _request())
            assert await asyncio.to_thread(gated.engine.entered.wait, 20)

            stopping = asyncio.ensure_future(server.stop())
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
            assert not gated.models.ready
            assert (await stub.call(CHECK, health_pb2.HealthCheckRequest())).status == NOT_SERVING
            refusal = await stub.refusal(CLASSIFY, _request())
            assert (refusal.code, refusal.message) == (
                "UNAVAILABLE",
                "the server is stopping and accepts no new calls: try again",
            )
            assert not stopping.done()

            gated.engine.gate.set()
            assert (await running).predictions[0].ranking.labels[0].label == "green"
            await asyncio.wait_for(stopping, 20)
            assert (await stub.refusal(CLASSIFY, _request())).code == "UNAVAILABLE"

    async def test_a_lame_duck_is_not_ready_and_still_serves(
        self, publish: Publish, serve_gated: ServeGated, connect: Connect
    ) -> None:
        """Requests that arrive while routes are withdrawn are answered."""
        publish()
        async with serve_gated() as gated:
            server, stub = _server(gated, lame_duck_s=600), connect(gated.grpc.port)
            stopping = asyncio.ensure_future(server.stop())
            change = gated.models.change
            if not gated.models.draining:
                await change.wait()
            assert (await stub.call(CHECK, health_pb2.HealthCheckRequest())).status == NOT_SERVING
            answer = await stub.call(CLASSIFY, _request())
            assert answer.predictions[0].ranking.labels[0].label == "green"
            assert not stopping.done()
            stopping.cancel()

    async def test_calls_beyond_the_drain_timeout_are_cut(
        self, publish: Publish, serve_gated: ServeGated, connect: Connect
    ) -> None:
        """A stop ends even if a network hangs."""
        publish()
        async with serve_gated() as gated:
            server, stub = _server(gated, drain_timeout_s=0.05), connect(gated.grpc.port)
            gated.engine.close()
            running = stub.start(CLASSIFY, _request())
            assert await asyncio.to_thread(gated.engine.entered.wait, 20)
            await asyncio.wait_for(server.stop(), 20)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running
            assert caught.value.code().name in {"CANCELLED", "UNAVAILABLE"}

    async def test_a_stopped_server_leaves_no_task_and_no_thread(
        self, publish: Publish, serve: Serve
    ) -> None:
        """After a stop and after leaving without one, with requests in between."""
        publish()
        before = asyncio.all_tasks()
        for stopped in (True, False):
            async with serve() as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
                assert (await client.classify(_green(), model=NAME)).top.label == "green"
                if stopped:
                    await server.stop()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
            assert not _our_threads()


class TestSignals:
    """A real process under load."""

    async def test_sigterm_answers_every_accepted_call_and_exits_with_0(
        self, publish: Publish, start_server: StartServer
    ) -> None:
        """Sixteen callers never pause: each is answered until its connection announces the stop."""
        publish()
        server = await asyncio.to_thread(start_server)
        answered = asyncio.Semaphore(0)
        ends: list[CallFailed] = []

        async def call_until_refused(client: AsyncClient) -> None:
            while True:
                try:
                    prediction = await client.classify(_green(), model=NAME)
                except CallFailed as error:
                    ends.append(error)
                    return
                assert prediction.top.label == "green"
                answered.release()

        async with AsyncClient(server.grpc, attempts=1) as client:
            callers = [asyncio.ensure_future(call_until_refused(client)) for _ in range(CALLERS)]
            for _ in range(10 * CALLERS):
                await asyncio.wait_for(answered.acquire(), 20)
            code = await asyncio.to_thread(server.stop)
            await asyncio.wait_for(asyncio.gather(*callers), 20)
        assert code == 0, server.log
        assert {(each.code, each.message) for each in ends} == {
            ("UNAVAILABLE", "the server is stopping and accepts no new calls: try again")
        }
        events = [event.get("event") for event in server.log]
        assert events[-2:] == ["stopping", "stopped"]

    async def test_a_second_signal_ends_it_at_once(
        self, publish: Publish, start_server: StartServer, connect: Connect
    ) -> None:
        """A second signal skips the lame duck; the exit code is 1, because the stop was not clean."""
        publish()
        server = await asyncio.to_thread(start_server, "--lame-duck-s", "600")
        stub = connect(int(server.grpc.rpartition(":")[2]))
        watch = stub.stream(WATCH, health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        server.process.send_signal(signal.SIGINT)
        while await watch.read() is not grpc.aio.EOF:  # a watch ends when the server begins to stop
            pass
        assert await asyncio.to_thread(server.stop) == 1
        assert not [event for event in server.log if "text" in event], server.log

    async def test_a_hanging_load_does_not_delay_a_stop(
        self, publish: Publish, start_server: StartServer, hang_load: HangLoad
    ) -> None:
        """Its thread cannot be stopped, but the process exits and served versions stop cleanly."""
        publish()
        server = await asyncio.to_thread(start_server)
        await asyncio.to_thread(hang_load, server)
        assert await asyncio.to_thread(server.stop) == 0
        events = [event.get("event") for event in server.log]
        assert events[-3:] == ["stopping", "stopped", "threads_left"]

    async def test_a_hanging_load_does_not_delay_a_second_signal(
        self, publish: Publish, start_server: StartServer, hang_load: HangLoad
    ) -> None:
        """The process exits immediately."""
        publish()
        server = await asyncio.to_thread(start_server, "--lame-duck-s", "600")
        await asyncio.to_thread(hang_load, server)
        server.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(server.wait_for, "stopping")
        assert await asyncio.to_thread(server.stop) == 1
        assert server.log[-1]["event"] == "stopping"


def _settings(repository: Path, **options: Any) -> ServerSettings:
    return ServerSettings.model_validate(
        {"repository": repository, "grpc_port": 0, "http_port": 0, **options}
    )


def _server(gated: GatedServer, **options: Any) -> Server:
    """A server around gated engines: everything that `stop` touches is real."""
    settings = _settings(Path(), **options)
    http = HttpServer(
        host="127.0.0.1",
        port=0,
        registry=gated.metrics.registry,
        why_not_live=lambda: "",
        why_not_ready=lambda: "",
    )
    device = choose_device("cpu", 0, "")
    return Server(
        settings, device, gated.metrics, gated.models, gated.classifier, gated.middleware, gated.grpc, http
    )


def _green() -> Pixels:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 1] = 255
    return pixels


def _request() -> pb.ClassifyRequest:
    pixels = pb.Pixels(height=8, width=8, channels=3, data=_green().tobytes())
    return pb.ClassifyRequest(model=NAME, images=[pb.Image(pixels=pixels)])


def _our_threads() -> list[threading.Thread]:
    """Return threads that still run after they have had time to end."""
    ours = ("engine", "decode", "http")
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(ours)]
    for thread in threads:
        thread.join(timeout=20)
    return [thread for thread in threads if thread.is_alive()]
