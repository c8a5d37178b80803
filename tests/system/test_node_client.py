"""gRPC for Node, whose HTTP/2 is neither gRPC's core nor ours. fetch_peers.sh installs it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.client.client import Client
from tests.colours import Publish
from tests.servers import StartServer

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".peers" / "node"
SCRIPT = Path(__file__).parent / "peers" / "node_client.js"
PROTO = ROOT / "proto" / "lenserve" / "v1" / "classifier.proto"


@pytest.fixture
def node() -> str:
    """The program."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node on this machine")
    if not list(PACKAGES.glob("*.done")):
        pytest.skip("no .peers/node: run tests/system/fetch_peers.sh")
    return program


@pytest.mark.parametrize("transport", ["h2", "grpc"])
def test_node_gets_the_results_of_our_client(
    publish: Publish,
    start_server: StartServer,
    node: str,
    tmp_path: Path,
    transport: str,
) -> None:
    """One image, 200 concurrent calls, many images; errors have code, message and details."""
    publish()
    pixels = np.random.default_rng(3).integers(0, 256, (50, 40, 3), np.uint8)  # (H, W, 3) RGB
    image = tmp_path / "image.png"
    Image.fromarray(pixels).save(image)
    server = start_server("--transport", transport)
    with Client(server.grpc) as client:
        prediction = client.classify(image, model="colours")
    ours = [[each.label, pytest.approx(each.probability)] for each in prediction.labels]

    done = subprocess.run(
        [node, SCRIPT, server.grpc, image, PROTO, PACKAGES],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["one"]["labels"] == [ours]
    assert report["one"]["trailers"]["x-request-id"] == "from-node"
    assert [each["labels"] for each in report["many"]] == [[ours]] * 200
    assert report["large"]["labels"] == [ours] * 100
    assert report["unknown"] == {
        "code": "NOT_FOUND",
        "details": "there is no model 'shapes'; known models: colours",
        "has_details": True,
    }
    assert report["late"]["code"] == "DEADLINE_EXCEEDED"
