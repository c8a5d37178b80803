"""The loop is closed: what a server captured, labelled by moving files, trains what it serves next."""

import asyncio
import io
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Bundle, Repository
from serving.client.client import AsyncClient
from serving.client.messages import Prediction
from serving.server import Server, run_server
from serving.settings import ServerSettings
from tests.serving.until import until
from training.data import load_unchecked
from training.recipe import Recipe, resolve
from training.run.job import Job, train_and_evaluate

NAME = "lenet5-digits"
RETRAINED = "digits-of-clients"
CLASSES = 3  # few, since the report of a run takes most of the time
SETTINGS = (
    "data.min_validation_images_per_class=2",
    *("geometry.height=28", "geometry.width=28", "geometry.channels=1"),
    *("training.epochs=4", "training.batch_size=16", "variants.precisions=[]", "report.images=none"),
    *("gates.min_accuracy=0.5", "gates.max_ece=0.5", "gates.allow_zero_recall=true"),
)


@asynccontextmanager
async def _serving(repository: Repository, capture: Path) -> AsyncIterator[tuple[Server, AsyncClient]]:
    settings = ServerSettings(
        repository=repository.root,
        grpc_port=0,
        http_port=0,
        poll_interval_s=0.05,
        capture_dir=capture,
        capture_rate=1.0,
    )
    async with run_server(settings) as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
        await server.models.scanned()
        yield server, client


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(file, "PNG")
    return file.getvalue()


def _label(capture: Path, truth: dict[bytes, str]) -> Path:
    """Move every image into the folder of its class, as a human does who looks at it."""
    labelled = capture / NAME / "labelled"
    for path in (capture / NAME / "predicted").glob("*/*"):
        folder = labelled / truth[path.read_bytes()]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    return labelled


def _train(labelled: Path, repository: Repository, job: Job) -> None:
    recipe = resolve("lenet5-folder", SETTINGS)
    retrained = replace(job, model=RETRAINED, repository=repository, data_root=labelled)
    assert train_and_evaluate(recipe, retrained).verdict == "published"


@pytest.mark.timeout(300)
async def test_captured_images_train_the_next_version(
    digits_recipe: Recipe, digits_bundle: Bundle, job: Job, tmp_path: Path
) -> None:
    """Serve, capture, label, train, publish: the server serves what learned from them."""
    repository = Repository(tmp_path / "repository")
    shutil.copytree(digits_bundle.folder, repository.root / NAME / "1")
    train = load_unchecked(digits_recipe.data, digits_recipe.geometry, None).train
    chosen = np.flatnonzero(train.labels < CLASSES)
    images = [_png(pixels) for pixels in train.images[chosen]]
    truth = {image: str(label) for image, label in zip(images, train.labels[chosen], strict=True)}
    async with _serving(repository, tmp_path / "capture") as (server, client):
        await client.classify_all(images, model=NAME)
        written = server.metrics.captured_images.labels(NAME, "1", "written")
        await until(lambda: written.value == len(truth))
        labelled = _label(tmp_path / "capture", truth)
        await asyncio.to_thread(_train, labelled, repository, job)
        await until(lambda: RETRAINED in server.models.names())
        await until(lambda: server.models.get(RETRAINED).ready)
        answers = await client.classify_all(images, model=RETRAINED)
    predicted = [answer.top.label for answer in answers if isinstance(answer, Prediction)]
    right = sum(label == truth[image] for label, image in zip(predicted, images, strict=True))
    assert right > 0.9 * len(images)
