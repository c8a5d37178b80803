"""Capture of served images: what is kept, and that no request waits for it or fails by it."""

import asyncio
import io
import json
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from serving.capture.capture import Capture
from serving.capture.choice import CapturePolicy
from serving.capture.folder import CaptureFolder
from serving.client.client import AsyncClient, Client
from serving.errors import UsageError
from serving.metrics.recorder import Metrics
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.server import run_server
from serving.settings import ServerSettings
from tests.colours import Publish
from tests.servers import Serve, ServerProcess, StartServer
from tests.serving.log_events import LogEvents
from tests.serving.stub import Stub
from tests.serving.until import until

NAME = "colours"
CLASSIFY = "lenserve.v1.Classifier/Classify"
LABELS = ("red", "green", "blue")
PROBABILITIES = np.array([[0.25, 0.75, 0.0]], np.float32)  # (1, 3)


def _colour(channel: int, level: int = 255, side: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = np.zeros((side, side, 3), np.uint8)  # (H, W, C)
    image[:, :, channel] = level
    return image


def _jpeg(channel: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_colour(channel, side=20)).save(file, "JPEG")
    return file.getvalue()


def _images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/predicted/*/*"))


def _answers(folder: Path) -> list[dict[str, Any]]:
    tables = sorted(folder.glob("*/answers/*.jsonl"))
    return [json.loads(line) for table in tables for line in table.read_text().splitlines()]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _counted(metrics: Metrics) -> dict[str, float]:
    return {outcome: each.value for (_, _, outcome), each in metrics.captured_images.items()}


async def test_images_are_kept_as_they_were_sent(serve: Serve, publish: Publish, tmp_path: Path) -> None:
    """Encoded files byte for byte, pixels as PNG, under the predicted label; not what cannot be decoded."""
    publish()
    folder = tmp_path / "capture"
    jpeg, pixels, tensor = _jpeg(0), _colour(1, side=9), _colour(2)
    async with (
        serve(capture_dir=folder, capture_rate=1.0) as server,
        AsyncClient(f"127.0.0.1:{server.grpc.port}") as client,
    ):
        await client.classify_all([jpeg, b"no image", pixels], model=NAME)
        await server.classifier.infer_tensor(tensor[np.newaxis], model=NAME)
        await server.classifier.infer([memoryview(jpeg)], model=NAME)  # the same image again
        await until(lambda: _counted(server.metrics) == {"written": 3, "duplicate": 1})
    blue, green, red = _images(folder)
    assert [path.parent.name for path in (blue, green, red)] == ["blue", "green", "red"]
    assert red.suffix == ".jpg"
    assert red.read_bytes() == jpeg
    for path, sent in ((green, pixels), (blue, tensor)):
        assert path.suffix == ".png"
        assert np.array_equal(np.asarray(Image.open(path)), sent)
    answers = _answers(folder)
    assert {answer["file"] for answer in answers} == {
        str(path.relative_to(folder / NAME)) for path in (blue, green, red)
    }
    assert all(answer["version"] == 1 and answer["confidence"] > 0.5 for answer in answers)


async def test_nothing_is_captured_unless_it_is_asked_for(
    serve: Serve, publish: Publish, tmp_path: Path
) -> None:
    """There is no default folder."""
    publish()
    async with serve() as server:
        await server.classifier.classify([_colour(0)], model=NAME)
        assert _counted(server.metrics) == {}
    assert _names(tmp_path) == {"repository"}


async def test_only_uncertain_images_are_captured_if_asked(
    serve: Serve, publish: Publish, tmp_path: Path
) -> None:
    """Bright red is certain, dark red is not."""
    publish()
    folder = tmp_path / "capture"
    async with serve(capture_dir=folder, capture_rate=1.0, capture_below_confidence=0.6) as server:
        for level in (255, 40):
            await server.classifier.classify([_colour(0, level)], model=NAME)
    (answer,) = _answers(folder)
    assert answer["label"] == "red"
    assert answer["confidence"] < 0.6


@pytest.mark.parametrize("options", [{"capture_below_confidence": 0.5}, {"capture_below_margin": 0.5}])
def test_an_option_of_capture_needs_its_folder(options: dict[str, float], tmp_path: Path) -> None:
    """Otherwise an operator would wait for images."""
    with pytest.raises(ValueError, match="needs --capture-dir: set it too"):
        ServerSettings(repository=tmp_path, **options)


def test_each_worker_needs_room_for_captures(tmp_path: Path) -> None:
    """Otherwise every image would be too large for its share."""
    room = {"repository": tmp_path / "repository", "capture_dir": tmp_path / "capture"}
    message = "--capture-max-bytes 2097152 is less than 1048576 for each of 3 workers: raise it"
    with pytest.raises(ValueError, match=message):
        ServerSettings(**room, workers=3, capture_max_bytes=2 * 2**20)
    ServerSettings(**room, workers=2, capture_max_bytes=2 * 2**20)


async def test_a_folder_that_cannot_be_used_is_reported_at_start(tmp_path: Path) -> None:
    """A file in its place, or a folder of the repository, which would look like a model."""
    with pytest.raises(ValueError, match="is inside the repository"):
        ServerSettings(repository=tmp_path, capture_dir=tmp_path / "capture")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "repository").mkdir()
    settings = ServerSettings(
        repository=tmp_path / "repository", capture_dir=tmp_path / "file", grpc_port=0, http_port=0
    )
    with pytest.raises(UsageError, match=r"--capture-dir .*/file cannot be used"):
        async with run_server(settings):
            pytest.fail("it would capture into a file")


@asynccontextmanager
async def _capture(folder: Path, metrics: Metrics, **options: Any) -> AsyncIterator[Capture]:
    files = CaptureFolder(folder, worker=0, workers=1, max_bytes=2**20, max_age_s=3600)
    async with Capture(files, CapturePolicy(), metrics, **options) as capture:
        yield capture


def _offer(capture: Capture, image: bytes | np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    capture.offer([image], PROBABILITIES, model=NAME, version=1, labels=LABELS)


async def test_what_the_queue_has_no_room_for_is_dropped_and_counted(tmp_path: Path) -> None:
    """Its limit is in bytes; smaller images are captured."""
    metrics = Metrics()
    async with _capture(tmp_path, metrics, max_queued_bytes=8 * 8 * 3) as capture:
        _offer(capture, _colour(0, side=9))
        assert _counted(metrics) == {"dropped": 1}
        _offer(capture, _colour(0))
        await until(lambda: _counted(metrics) == {"dropped": 1, "written": 1})


async def test_memory_of_the_client_is_copied(tmp_path: Path) -> None:
    """A tensor in shared memory changes with the client's next request."""
    image = _colour(0)
    metrics = Metrics()
    async with _capture(tmp_path, metrics) as capture:
        _offer(capture, image)
        image[:] = 7
        await until(lambda: _counted(metrics) == {"written": 1})
    (path,) = _images(tmp_path)
    assert np.array_equal(np.asarray(Image.open(path)), _colour(0))


def _have_failed(metrics: Metrics, images: int) -> bool:
    return _counted(metrics) == {"failed": images}


async def test_capture_that_failed_begins_again_later(tmp_path: Path, log_events: LogEvents) -> None:
    """With one line in the log when it stops and one when it goes on."""
    (tmp_path / NAME).write_bytes(b"in the way")
    metrics = Metrics()
    stopped = metrics.capture_stopped.labels()
    async with _capture(tmp_path, metrics, retry_s=0.05) as capture:
        for failed in range(1, 4):
            _offer(capture, _colour(0, failed))
            await until(partial(_have_failed, metrics, failed))
            assert stopped.value == 1
            await until(lambda: not capture._is_paused)
        (tmp_path / NAME).unlink()
        _offer(capture, _colour(0, 99))
        await until(lambda: stopped.value == 0)
    assert len(_images(tmp_path)) == 1
    assert len(log_events.named("capture_stopped")) == len(log_events.named("capture_resumed")) == 1
    assert _counted(metrics) == {"failed": 3, "written": 1}


async def test_a_folder_of_another_server_stops_capture_alone(tmp_path: Path, log_events: LogEvents) -> None:
    """Such as that of the server that this one replaces: it is tried again."""
    first, second = Metrics(), Metrics()
    async with _capture(tmp_path, first) as capture:
        _offer(capture, _colour(0))
        await until(lambda: _counted(first) == {"written": 1})
        async with _capture(tmp_path, second):
            await until(lambda: second.capture_stopped.labels().value == 1)
    (event,) = log_events.named("capture_stopped")
    assert "another server captures into" in event.reason


async def test_an_image_that_is_none_is_not_captured(tmp_path: Path) -> None:
    """It is counted as failed, and the next one is captured."""
    metrics = Metrics()
    async with _capture(tmp_path, metrics) as capture:
        _offer(capture, b"no image")
        _offer(capture, _colour(0))
        await until(lambda: _counted(metrics) == {"failed": 1, "written": 1})
    assert metrics.capture_stopped.labels().value == 0


async def test_a_full_disk_stops_capture_and_not_the_server(
    start_server: StartServer, publish: Publish, tmp_path: Path
) -> None:
    """With one line in the log, whatever is sent then. The limit on file sizes stands for a full disk."""
    publish()
    folder = tmp_path / "capture"
    server = await asyncio.to_thread(
        start_server, "--capture-dir", str(folder), "--capture-rate", "1", "--decode-threads", "1"
    )
    await asyncio.to_thread(_classify_on_a_full_disk, server)
    assert len(list(server.events("capture_stopped"))) == 1
    assert _images(folder) == []
    assert list((folder / ".staging").glob("*.png")) == []


def _classify_on_a_full_disk(server: ServerProcess) -> None:
    with Client(server.grpc) as client:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        client.classify(_colour(0), model=NAME)
        (stopped,) = server.wait_for("capture_stopped")
        assert "File too large" in str(stopped["reason"])
        for level in range(20):
            assert client.classify(_colour(1, 100 + level), model=NAME).top.label == "green"


async def test_workers_capture_side_by_side(
    start_server: StartServer, publish: Publish, tmp_path: Path
) -> None:
    """Into one folder, each into its own files; after SIGTERM everything that was queued is written."""
    publish()
    folder = tmp_path / "capture"
    options = ("--capture-dir", str(folder), "--capture-rate", "1", "--workers", "2")
    server = await asyncio.to_thread(start_server, *options)
    async with AsyncExitStack() as stack:
        for number in range(4):  # open connections, which the workers share out
            channel = grpc.aio.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)])
            stub = Stub(await stack.enter_async_context(channel))
            for level in range(5):
                pixels = _colour(2, 100 + 5 * number + level)
                image = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=pixels.tobytes()))
                await stub.call(CLASSIFY, pb.ClassifyRequest(model=NAME, images=[image]))
    assert await asyncio.to_thread(server.stop) == 0
    assert {path.stem.rpartition("-")[2] for path in _images(folder)} == {"1", "2"}
    assert len(_images(folder)) == len(_answers(folder)) == 20
