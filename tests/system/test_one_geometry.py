"""Networks are evaluated on the server's pixels: cropped images get the labels that were evaluated."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serving.bundle import Repository
from serving.client.client import Client, Prediction

RECIPE = """
[data]
source = "npz"
labels = ["dark", "bright"]
near_duplicates = "ignore"
[geometry]
height = 28
width = 28
channels = 1
fit = "crop"
crop_fraction = 0.875
[training]
epochs = 2
batch_size = 32
learning_rate = 3e-3
[variants]
precisions = []
"""


def border(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose class is in the outermost rows, which the crop removes: (N, 28, 28), (N, 1)."""
    labels = np.arange(count) % 2
    random = np.random.default_rng(count)
    images = (60 + random.integers(0, 30, (count, 28, 28))).astype(np.uint8)
    outermost = np.where(labels == 1, 250, 10).astype(np.uint8)[:, None]
    images[:, 0] = images[:, -1] = outermost
    return images, labels[:, None].astype(np.uint8)


def train(tmp_path: Path, repository: Repository, *overrides: str) -> dict[str, Any]:
    """Run the recipe; the last line of its output."""
    recipe = tmp_path / "border.toml"
    recipe.write_text(RECIPE)
    places = {"--repository": repository.root, "--run-dir": tmp_path / "run", "--data-root": tmp_path}
    options = [text for option, path in places.items() for text in (option, str(path))]
    options += [text for override in overrides for text in ("--set", override)]
    command = [sys.executable, "-m", "training", "run", str(recipe), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def test_border_images_are_refused_or_served_as_evaluated(
    tmp_path: Path, repository: Repository, start_server: Callable[..., Any]
) -> None:
    """By default a gate refuses the network; without gates, gRPC gives the manifest's accuracy."""
    (images, labels), validation, test = border(300), border(60), border(200)
    np.savez(
        tmp_path / "border.npz",
        train_images=images,
        train_labels=labels,
        val_images=validation[0],
        val_labels=validation[1],
        test_images=test[0],
        test_labels=test[1],
    )
    assert train(tmp_path, repository)["verdict"] == "refused"
    published = train(tmp_path, repository, "gates.min_skill=-1", "gates.allow_zero_recall=true")
    assert published["verdict"] == "published"
    evaluation = repository.read("border", 1).manifest.measured()

    server = start_server()
    with Client(server.grpc) as client:
        encoded = [_png(image) for image in test[0]]
        answers = list(client.classify_all(encoded, model="border", top_k=1, images_per_request=50))
    predicted = np.array([answer.top.index for answer in answers if isinstance(answer, Prediction)])
    assert len(predicted) == evaluation.images == 200
    assert int((predicted == test[1][:, 0]).sum()) == evaluation.correct


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
