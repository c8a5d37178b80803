"""Unchanged clients for Triton against a real server. fetch_peers.sh installs them."""

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.client.client import Client, Prediction
from serving.pb.inference import grpc_service_pb2, model_config_pb2
from tests.colours import LABELS, Publish
from tests.servers import StartServer

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers"
SCRIPTS = Path(__file__).parent / "peers"

TOLERANCE = 1e-6

RunScript = Callable[[str, str], Any]


@pytest.fixture
def triton(tmp_path: Path) -> RunScript:
    """Run a script of peers/ inside .peers/triton, with an image file and pixels, and read its report."""
    python = PEERS / "triton" / "bin" / "python"
    if not list(PEERS.glob("triton/*.done")):
        pytest.skip("no .peers/triton: run tests/system/fetch_peers.sh")
    Image.fromarray(_image()).save(tmp_path / "image.png")
    np.save(tmp_path / "pixels.npy", _pixels())

    def run(script: str, address: str) -> Any:  # noqa: ANN401 - JSON
        done = subprocess.run(
            [python, SCRIPTS / script, address, tmp_path / "image.png", tmp_path / "pixels.npy"],
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def _image() -> np.ndarray:
    """A picture of another size than the network's input, (H, W, 3): mostly green, the rest noise."""
    pixels = np.random.default_rng(3).integers(0, 120, (50, 40, 3), np.uint8)
    pixels[..., 1] += 100
    return pixels


def _pixels() -> np.ndarray:
    """Three images in the network's geometry, (3, 8, 8, 3) uint8."""
    return np.random.default_rng(4).integers(0, 256, (3, 8, 8, 3), np.uint8)


def _ours(address: str) -> tuple[list[list[float]], list[list[float]]]:
    """Our own client's results for the picture and the three images: probabilities by index."""
    with Client(address) as client:
        results = list(client.classify_all([_image(), *_pixels()], model="colours"))
    rows = [
        [each.probability for each in sorted(result.labels, key=lambda label: label.index)]
        for result in results
        if isinstance(result, Prediction)
    ]
    return rows[:1], rows[1:]


def test_our_messages_are_tritons(triton: RunScript) -> None:
    """Every field of ours has the number and type of the field of that name in NVIDIA's messages."""
    theirs = triton("triton_messages.py", "")

    for module in (grpc_service_pb2, model_config_pb2):
        for message in _messages(module.DESCRIPTOR.message_types_by_name.values()):
            ours = {field.name: [field.number, field.type] for field in message.fields}
            ours.pop("properties", None)  # the protocol has it, Triton has not
            assert ours.items() <= theirs[message.full_name].items(), message.full_name
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            values = {value.name: value.number for value in enum.values}
            assert values.items() <= theirs[enum.full_name].items(), enum.full_name


def _messages(messages: Iterable[Any]) -> Iterator[Any]:
    """These messages and all nested ones, except map entries."""
    for message in messages:
        if not message.GetOptions().map_entry:
            yield message
            yield from _messages(message.nested_types)


def test_tritons_client_gets_the_results_of_ours(
    publish: Publish, start_server: StartServer, triton: RunScript
) -> None:
    """tritonclient.grpc: probes, metadata, tensors, encoded images, compression, classification."""
    publish()
    server = start_server()

    report = triton("triton_sync.py", server.grpc)

    encoded, pixels = _ours(server.grpc)
    assert [report[key] for key in ("live", "ready", "model_ready", "unknown_ready")] == [
        True,
        True,
        True,
        False,
    ]
    assert report["unknown"] == ["StatusCode.NOT_FOUND", "there is no model 'shapes'; known models: colours"]
    assert report["server"]["name"] == "lenserve"
    assert report["input"] == ["image", "UINT8", [-1, 8, 8, 3]]
    assert report["output"] == ["probabilities", "FP32", [-1, 3]]
    assert (report["max_batch_size"], report["format"]) == (128, 1)
    assert report["embedding_shape"] == [3, 3]
    np.testing.assert_allclose(report["encoded"], encoded, atol=TOLERANCE)
    for way in ("pixels", "gzip", "deflate"):
        np.testing.assert_allclose(report[way], pixels, atol=TOLERANCE)
    _assert_classes(report["classes"], encoded)
    _assert_classes(report["batch_classes"], pixels)


def _assert_classes(classes: list[list[Any]], probabilities: list[list[float]]) -> None:
    """Two classes per image: value with 6 decimals, index, label, most probable first."""
    best = [
        (row[index], index)
        for row in probabilities
        for index in np.argsort(-np.array(row), kind="stable")[:2]
    ]
    assert [each[1:] for each in classes] == [[index, LABELS[index]] for _, index in best]
    values = [round(value, 6) for value, _ in best]
    np.testing.assert_allclose([each[0] for each in classes], values, atol=2 * TOLERANCE)


def test_tritons_asyncio_client_gets_the_results_of_ours(
    publish: Publish, start_server: StartServer, triton: RunScript
) -> None:
    """tritonclient.grpc.aio: the same, and eight requests at once."""
    publish()
    server = start_server()

    report = triton("triton_aio.py", server.grpc)

    encoded, pixels = _ours(server.grpc)
    assert [report[key] for key in ("live", "ready", "model_ready")] == [True, True, True]
    assert (report["platform"], report["name"]) == ("onnxruntime_onnx", "colours")
    np.testing.assert_allclose(report["pixels"], pixels, atol=TOLERANCE)
    np.testing.assert_allclose(report["encoded"], encoded, atol=TOLERANCE)
    np.testing.assert_allclose(report["together"], [pixels] * 8, atol=TOLERANCE)


def test_tritons_clients_stream(publish: Publish, start_server: StartServer, triton: RunScript) -> None:
    """Both clients, 200 requests over one stream: answers in order, including an error."""
    publish()
    server = start_server()

    report = triton("triton_stream.py", server.grpc)

    _, pixels = _ours(server.grpc)
    for way, answers in report.items():
        assert len(answers) == 200
        for number, (request_id, answer) in enumerate(answers):
            if (way, number) == ("sync", 100):
                assert answer == "there is no model 'shapes'; known models: colours"
            else:
                assert request_id == str(number), way
                np.testing.assert_allclose(answer, pixels[number % 3], atol=TOLERANCE)


def test_tritons_client_loads_and_unloads(
    publish: Publish, start_server: StartServer, triton: RunScript
) -> None:
    """If the operator allows it; while unloaded, the model is not ready, but the server is."""
    publish()
    server = start_server("--model-control")

    report = triton("triton_repository.py", server.grpc)

    ready = [{"name": "colours", "version": "1", "state": "READY"}]
    away = [{"name": "colours", "state": "UNAVAILABLE", "reason": "it was unloaded on request"}]
    assert report == {
        "before": ready,
        "unloaded": [away, False, True],
        "loaded": [ready, True],
        "unknown": ["StatusCode.NOT_FOUND", "failed to load 'shapes': the repository has no such model"],
        "statistics": [["colours", "1"]],
    }


def test_tritons_client_shares_memory(publish: Publish, start_server: StartServer, triton: RunScript) -> None:
    """Input and output in regions of the client: the same probabilities as over the network."""
    publish()
    server = start_server("--shared-memory-pattern", "lenserve-peer-.*")

    report = triton("triton_shared_memory.py", server.grpc)

    _, pixels = _ours(server.grpc)
    np.testing.assert_allclose(report["pixels"], pixels, atol=TOLERANCE)
    assert (report["status"], report["left"]) == (["given", "wanted"], ["wanted"])
    assert report["refused"] == ["StatusCode.ALREADY_EXISTS", "StatusCode.INVALID_ARGUMENT"]


@pytest.mark.parametrize(
    "options",
    [
        ("-b", "4"),
        ("--streaming",),
        ("-b", "4", "--shared-memory", "system", "--output-shared-memory-size", "64"),
    ],
    ids=["unary", "streaming", "shared-memory"],
)
def test_perf_analyzer_completes_a_run(
    publish: Publish, start_server: StartServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """NVIDIA's load generator reads metadata, configuration and statistics, sends for seconds, and reports.

    Its report about the server comes from ModelStatistics: all requests ran, and none failed.
    """
    if not list(PEERS.glob("perf_analyzer/*.done")):
        pytest.skip("no .peers/perf_analyzer: run tests/system/fetch_peers.sh")
    publish()
    server = start_server("--shared-memory-pattern", "[a-z_0-9]+")  # named after the tensors
    report = tmp_path / "report.csv"
    # Three windows of 200 requests, however they differ: the claim is that it works, not how fast.
    bounds = [
        "--measurement-mode",
        "count_windows",
        "--measurement-request-count",
        "200",
        "-s",
        "999",
        "-r",
        "3",
    ]

    done = subprocess.run(
        [
            PEERS / "perf_analyzer" / "perf_analyzer",
            *("-i", "grpc", "-u", server.grpc, "-m", "colours", "--concurrency-range", "2"),
            *options,
            *bounds,
            *("-f", str(report)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(report.read_text(encoding="utf-8").splitlines())
    assert (row["Concurrency"], float(row["Inferences/Second"]) > 0) == ("2", True), done.stdout
    assert float(row["Server Compute Infer"]) > 0, row
    assert float(row["Server Queue"]) >= 0, row
    (inferences,) = re.findall(r"Server:\s+Inference count: (\d+)", done.stdout)
    assert int(inferences) >= 600, done.stdout
