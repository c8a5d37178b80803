"""The whole path on real MNIST: train, publish, serve, and classify all 10,000 test images over gRPC."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Repository
from serving.client.client import Client, Prediction
from tests.servers import StartServer

IDX_HEADER_BYTES = {"images": 16, "labels": 8}


@pytest.mark.data
@pytest.mark.timeout(900)
def test_mnist_through_the_server_gives_the_evaluated_labels(
    data_root: Path, repository: Repository, tmp_path: Path, start_server: StartServer
) -> None:
    """Four epochs of lenet5-mnist reach 99.0 %, and gRPC gives exactly the evaluated labels."""
    command = [sys.executable, "-m", "training", "run", "lenet5-mnist", "--json"]
    epochs = ["--set", "training.epochs=4"]  # the whole recipe: README, results
    places = ["--repository", repository.root, "--run-dir", tmp_path / "run", "--data-root", data_root]
    done = subprocess.run([*command, *epochs, *map(str, places)], check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["verdict"] == "published"
    bundle = repository.read("lenet5-mnist", summary["version"])
    evaluation = bundle.manifest.measured()
    assert evaluation.images == 10_000
    assert evaluation.accuracy.value >= 0.990

    images = _idx(data_root, "images").reshape(-1, 28, 28)  # (10000, 28, 28) uint8
    labels = _idx(data_root, "labels")  # (10000,)
    server = start_server()
    with Client(server.grpc) as client:
        answers = list(client.classify_all(images, model="lenet5-mnist", top_k=1, images_per_request=100))
    predicted = np.array([answer.top.index for answer in answers if isinstance(answer, Prediction)])
    assert len(predicted) == 10_000
    assert int((predicted == labels).sum()) == evaluation.correct

    metrics = json.loads((bundle.folder / "report" / "metrics.json").read_text())
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert confusion.tolist() == metrics["test"]["confusion"]


def _idx(data_root: Path, kind: str) -> np.ndarray:
    name = {"images": "t10k-images-idx3-ubyte.gz", "labels": "t10k-labels-idx1-ubyte.gz"}[kind]
    content = gzip.decompress((data_root / "MNIST" / "raw" / name).read_bytes())
    return np.frombuffer(content, np.uint8, offset=IDX_HEADER_BYTES[kind])
