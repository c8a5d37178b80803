"""The server in an environment without training's libraries, and the bundle without the server's."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest

from serving.client.client import AsyncClient
from tests.colours import Publish
from tests.servers import StartServer

REFUSED = ("torch", "torchvision", "onnx", "onnxscript", "sklearn", "matplotlib", "training")

# A finder in front of all others: to Python these packages are not installed. At the end the program tells
# which of them are loaded all the same.
SERVE_WITHOUT = f"""
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
from serving.cli import main

code = main()
loaded = sorted(set(sys.modules) & set({REFUSED!r}))
print(f"loaded: {{loaded}}", file=sys.stderr)
sys.exit(code)
"""


async def test_the_server_starts_and_answers_without_torch(
    publish: Publish, start_server: StartServer
) -> None:
    """A server process that cannot import torch, onnx or training starts, answers, and stops."""
    publish()
    server = start_server(code=SERVE_WITHOUT)
    async with AsyncClient(server.grpc) as client:
        prediction = await client.classify(np.full((3, 3, 3), (0, 200, 0), np.uint8), model="colours")

    code = await asyncio.to_thread(server.stop)

    assert prediction.top.label == "green"
    assert code == 0
    assert server.log[-1] == {"text": "loaded: []\n"}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("serving.bundle", ("grpc", "onnxruntime", "prometheus_client", "google.protobuf", *REFUSED)),
        ("serving.cli", ("grpc", "onnxruntime", *REFUSED)),
        ("serving.client.client", ("onnxruntime", "prometheus_client", *REFUSED)),
        ("serving.server", REFUSED),
        ("serving.importing.importer", tuple(set(REFUSED) - {"onnx"})),
    ],
)
def test_importing_a_part_loads_no_more_than_it_needs(module: str, unwanted: tuple[str, ...]) -> None:
    """The bundle loads no server, the command line answers before it loads one, and nothing loads torch."""
    code = f"import sys, {module}; print(sorted(set(sys.modules) & set({unwanted!r})))"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "[]\n"
