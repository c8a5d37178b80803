"""What is trained on a GPU is served on it with the CPU's labels; every speed measure takes its steps."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from serving.bundle import Bundle
from serving.bundle.images import Pixels
from serving.client.client import AsyncClient, Prediction
from serving.engine.base import Device as ServingDevice
from serving.engine.onnx import OnnxEngine
from serving.server import run_server
from serving.settings import ServerSettings
from training import data
from training.data import Dataset
from training.devices.device import Device
from training.errors import Interrupted
from training.learning.loop import TrainResult, train
from training.recipe import Recipe, resolve
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job, train_and_evaluate

pytestmark = pytest.mark.gpu

DIGITS = 1000
FAKE = ("data.fake_images_per_class=100", "training.epochs=2", "training.patience=2")


@pytest.fixture(scope="module")
def served_digits(mnist_root: Path | None) -> Pixels:
    """(1000, H, W, 1) uint8: real handwritten digits in LeNet-5's geometry."""
    recipe = resolve("lenet5-mnist" if mnist_root else "lenet5-digits")
    dataset = data.load_unchecked(recipe.data, recipe.geometry, mnist_root)
    parts = [np.asarray(part.images) for part in (dataset.test, dataset.validation, dataset.train)]
    return np.concatenate(parts)[:DIGITS]  # of MNIST all are test images


@pytest.fixture
def trained_lenet5(job: Job, mnist_root: Path | None) -> Bundle:
    """LeNet-5 after two epochs on the device, published with its FP16 form."""
    short = (
        "training.epochs=2",
        "gates.min_accuracy=0.5",
        "gates.max_ece=0.5",
        'variants.precisions=["fp16"]',
    )
    recipe = resolve("lenet5-mnist" if mnist_root else "lenet5-digits", short)
    summary = train_and_evaluate(recipe, replace(job, data_root=mnist_root))
    assert summary.verdict == "published", summary
    return job.repository.read(job.model, 1)


async def test_lenet5_trained_here_is_served_with_the_labels_of_the_cpu(
    trained_lenet5: Bundle, served_digits: Pixels, device: Device, job: Job
) -> None:
    """Two epochs, export, proof, then 1,000 real digits over gRPC: in FP32 every label is the CPU's."""
    cpu = OnnxEngine.load(
        trained_lenet5.model_file, ServingDevice("cpu", 0, "reference"), threads=1, max_batch_size=DIGITS
    )
    expected = cpu.run(served_digits).probabilities.argmax(axis=1)  # (N,)
    asked = device.torch_device.type
    for precision, same in (("fp32", DIGITS), ("fp16", 0.995 * DIGITS)):
        settings = ServerSettings(
            repository=job.repository.root, grpc_port=0, http_port=0, device=asked, precision=precision
        )
        async with run_server(settings) as server:
            await server.models.scanned()
            with server.models.lease(job.model) as version:
                engine = version.engine
                assert isinstance(engine, OnnxEngine)
                providers = engine._session.get_providers()
                assert (version.network.precision or "fp32") == precision
            assert providers[0] == ("CUDAExecutionProvider" if asked == "cuda" else "CPUExecutionProvider")
            async with AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
                found = await client.classify_all(served_digits, model=job.model, top_k=1)
        labels = np.array([each.top.index for each in found if isinstance(each, Prediction)])
        assert len(labels) == DIGITS
        assert (labels == expected).sum() >= same, precision
    assert device.machine in (trained_lenet5.folder / "report" / "metrics.json").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("training.precision=bfloat16",), id="bfloat16"),
        pytest.param(("training.channels_last=true",), id="channels_last"),
        pytest.param(("training.optimizer=muon", "training.learning_rate=0.02"), id="muon"),
        pytest.param(
            ("training.compile=true", "training.epochs=1"),
            id="compile",
            marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
        ),
        pytest.param(
            ("augmentation.trivial=true", "augmentation.mixup=0.4", "augmentation.max_blur_px=2"),
            id="augmented",
        ),
    ],
)
def test_a_speed_measure_takes_its_steps(overrides: tuple[str, ...], device: Device, tmp_path: Path) -> None:
    """Every loss is a number, and the weights have moved on the device."""
    trained = learned(resolve("lenet5-fake", (*FAKE, *overrides)), device, tmp_path)
    assert all(np.isfinite([record.train_loss, record.validation_loss]).all() for record in trained.history)
    assert {value.device.type for value in trained.network.parameters()} == {device.torch_device.type}


def test_a_stopped_run_goes_on(device: Device, tmp_path: Path) -> None:
    """Stopped after a few steps and resumed, it ends near the losses of a run that was not stopped."""
    recipe = resolve("lenet5-fake", (*FAKE, "network.dropout=0.3", "training.checkpoint_interval_steps=2"))
    whole = learned(recipe, device, tmp_path / "whole")
    interrupts = Interrupts()
    stopping = Stopping(interrupts, 3)
    with pytest.raises(Interrupted, match="saved in epoch 1 after step 3"):
        learned(recipe, device, tmp_path / "stopped", display=stopping, interrupts=interrupts)
    resumed = learned(recipe, device, tmp_path / "stopped")
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=2e-2)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=5e-2, abs=1e-2)


def test_images_that_are_streamed_train_as_those_in_memory(device: Device, tmp_path: Path) -> None:
    """Read from disk batch by batch, they reach the device as the same pixels."""
    write_shades(tmp_path / "data")
    settings = ("data.source=folder", "training.epochs=1", "training.batch_size=16")
    losses = []
    for limit in ("0", "1"):
        recipe = resolve("lenet5-fake", (*settings, f"data.memory_limit_gib={limit}"))
        dataset, _ = data.load(recipe.data, recipe.geometry, tmp_path / "data", tmp_path / "cache")
        losses.append(learned(recipe, device, tmp_path / limit, dataset=dataset).history[0].train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="adam"),
        pytest.param(("training.optimizer=sgd", "training.learning_rate=0.05"), id="sgd"),
        pytest.param(("training.optimizer=muon", "training.learning_rate=0.02"), id="muon"),
        pytest.param(("training.max_gradient_norm=1.0", "training.averaging=0.9"), id="clipped, averaged"),
        pytest.param(("augmentation.mixup=0.4", "training.label_smoothing=0.1"), id="mixed"),
    ],
)
def test_a_recorded_step_learns_as_plain_steps(
    overrides: tuple[str, ...], device: Device, tmp_path: Path
) -> None:
    """Replayed as a CUDA graph, with rates that change at every step, training ends with the same losses."""
    losses = []
    for recorded in ("true", "false"):
        recipe = resolve("lenet5-fake", (*FAKE, *overrides, f"training.cuda_graphs={recorded}"))
        history = learned(recipe, device, tmp_path / recorded).history
        losses.append([(record.train_loss, record.validation_loss) for record in history])
    np.testing.assert_allclose(losses[0], losses[1], rtol=3e-2, atol=1e-2)


def test_reproducible_kernels_give_the_same_bits_twice(device: Device, tmp_path: Path) -> None:
    """Two runs in processes of their own: cuBLAS must find its setting before it starts."""
    folders = [str(tmp_path / str(number)) for number in range(2)]
    command = [sys.executable, "-c", REPRODUCED, device.torch_device.type]
    runs = [subprocess.Popen([*command, each], stdout=subprocess.PIPE, text=True) for each in folders]
    digests = [run.communicate(timeout=40)[0].splitlines()[-1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert digests[0] == digests[1]


REPRODUCED = """
import hashlib, sys
from pathlib import Path
from rich.console import Console
from training import data
from training.devices.device import choose, prepare
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.learning.loop import train
from training.recipe import resolve

device = choose(sys.argv[1], kernels="reproducible")
prepare(device)
recipe = resolve("lenet5-fake", ["training.epochs=1", "network.batch_norm=true"])
trained = train(
    recipe, data.load(recipe.data, recipe.geometry, None)[0], device=device.torch_device,
    checkpoint_path=Path(sys.argv[2]), display=Display(Console(quiet=True)), interrupts=Interrupts(),
)
digest = hashlib.sha256()
for value in trained.network.state_dict().values():
    digest.update(value.cpu().numpy().tobytes())
print(digest.hexdigest())
"""


class Warned(Display):
    """Shows nothing, and takes a warning for a failure: a step that cannot be recorded, for example."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))

    def warning(self, text: str) -> None:
        """Fail."""
        pytest.fail(text)


class Stopping(Warned):
    """Asks the run to stop after a step, as a signal would."""

    def __init__(self, interrupts: Interrupts, last_step: int) -> None:
        super().__init__()
        self._interrupts = interrupts
        self._last_step = last_step

    def step_done(self, steps: int) -> None:
        """Count."""
        if steps == self._last_step:
            self._interrupts.received = signal.SIGTERM


def learned(
    recipe: Recipe, device: Device, folder: Path, *, dataset: Dataset | None = None, **options: Any
) -> TrainResult:
    """Train by a recipe on the device."""
    folder.mkdir(exist_ok=True)
    quiet = {"display": Warned(), "interrupts": Interrupts()}
    return train(
        recipe,
        dataset or data.load(recipe.data, recipe.geometry, None)[0],
        device=device.torch_device,
        checkpoint_path=folder / "checkpoint.pt",
        **{**quiet, **options},
    )


def write_shades(root: Path) -> None:
    """Class folders of noise, one darker than the other."""
    random = np.random.default_rng(0)
    for name, brightest in (("dark", 120), ("light", 256)):
        (root / name).mkdir(parents=True)
        for number in range(100):
            noise = random.integers(0, brightest, (28, 28), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"{number:03}.png")
