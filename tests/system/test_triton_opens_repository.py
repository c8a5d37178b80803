"""The same folder is served by Triton: `lenserve models export-config`, then a real `tritonserver`.

The wheel of nvidia-pytriton has Triton's core without its ONNX Runtime backend. A Python backend of that name
stands in; that Triton accepts config.pbtxt, the folders and the labels is what is shown here.
"""

import http.client
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import Repository
from serving.cli import main
from serving.client.client import Client
from tests.colours import Publish
from tests.servers import StartServer

PEERS = Path(__file__).parents[2] / ".peers" / "bench" / "triton"
BACKEND = Path(__file__).parent / "peers" / "triton_onnxruntime.py"
STARTING_S = 60.0


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    """Triton's Python backend, and the one that opens ONNX files by it."""
    if not (PEERS / "bench.done").exists():
        pytest.skip("no .peers/bench/triton: run tests/benchmarks/fetch.sh")
    package = next(PEERS.glob("lib/python3*/site-packages/pytriton/tritonserver"))
    python = package / "backends" / "python"
    stub = package / "python_backend_stubs" / package.parents[2].name.removeprefix("python")
    if not (python / "triton_python_backend_stub").exists():
        (python / "triton_python_backend_stub").symlink_to(stub / "triton_python_backend_stub")
    (tmp_path / "backends" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "backends" / "python").symlink_to(python)  # its libraries are found from where it really is
    (tmp_path / "backends" / "onnxruntime" / "model.py").write_text(BACKEND.read_text())
    return tmp_path / "backends"


@pytest.fixture
def triton(
    backends: Path, repository: Repository, publish: Publish, free_ports: tuple[int, int]
) -> Iterator[int]:
    """The port of a Triton that serves a repository with two versions, of which the first one is stable."""
    publish()
    publish(rotate=1)
    repository.set_alias("colours", "stable", 1)
    assert main(["models", "export-config", "--repository", str(repository.root)]) == 0
    package = next(PEERS.glob("lib/python3*/site-packages/pytriton/tritonserver"))
    command = [str(package / "bin" / "tritonserver"), f"--model-repository={repository.root}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={free_ports[0]}"]
    command += ["--allow-grpc=false", "--allow-metrics=false"]
    environment = {
        "PYTHONPATH": str(package.parents[1]),
        "PATH": f"{PEERS / 'bin'}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    too_late = threading.Timer(STARTING_S, process.kill)
    too_late.start()
    log = []
    for line in process.stdout:
        log.append(line)
        if "Started HTTPService" in line:  # which is after all models have loaded
            break
    too_late.cancel()
    try:
        assert process.poll() is None, "".join(log[-40:])
        yield free_ports[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _infer(port: int, images: "np.ndarray[Any, np.dtype[np.uint8]]") -> dict[str, list[Any]]:
    body = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": list(images.shape),
                "data": images.ravel().tolist(),
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}, {"name": "embedding"}],
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v2/models/colours/infer", json.dumps(body))
        answer = json.load(connection.getresponse())
    finally:
        connection.close()
    assert answer["model_version"] == "1"
    return {output["name"]: output["data"] for output in answer["outputs"]}


def test_triton_answers_as_our_server_does(
    triton: int, repository: Repository, start_server: StartServer
) -> None:
    """The version that `stable` names, the same labels and probabilities, and the embedding."""
    server = start_server("--repository", str(repository.root))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, :, :, 0] = images[1, :, :, 2] = 255
    answer = _infer(triton, images)
    with Client(server.grpc) as client:
        expected = [
            f"{label.probability:.6f}:{label.index}:{label.label}"
            for image in images
            for label in client.classify(image, model="colours", top_k=2).labels
        ]
    assert answer["probabilities"] == expected
    assert len(answer["embedding"]) == 2 * repository.read("colours", 1).manifest.embedding_size
