"""The learning methods, on real digits and a small backbone with random weights."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from serving.bundle import Geometry
from training import data
from training.data import Dataset
from training.errors import Interrupted
from training.explain.onnx_layers import read_layers
from training.explain.torch_layers import layer_named
from training.export.export import Classifier, export
from training.learning.history import EpochRecord
from training.learning.learn import LearnContext, learn
from training.learning.optimizers import make_optimizer
from training.networks import Network, build
from training.recipe import Recipe, resolve
from training.report.layer_summary import list_layers
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job, train_and_evaluate
from training.run.run_folder import RunFolder

SMALL = (
    *("network.name=squeezenet1_1", "geometry.height=32", "geometry.width=32", "geometry.channels=3"),
    *("data.source=digits", "augmentation.max_shift_px=0"),
    *("training.epochs=2", "training.batch_size=64", "gates.min_accuracy=0", "gates.max_ece=1"),
)


def recipe_with(*overrides: str) -> Recipe:
    """SqueezeNet with random weights on the digits at 32x32."""
    return resolve("lenet5-digits", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """A few hundred digits."""
    recipe = recipe_with()
    dataset, _ = data.load(recipe.data, recipe.geometry, None)
    few = np.arange(200)
    return replace(
        dataset,
        train=dataset.train.take(few),
        validation=dataset.validation.take(few),
        test=dataset.test.take(few),
    )


@pytest.fixture
def context(job: Job) -> LearnContext:
    """A context with a new run directory."""
    job.run_dir.mkdir()
    return LearnContext(RunFolder(job.run_dir), job.cache, job.device, job.display, job.interrupts)


def test_with_a_frozen_trunk_only_the_head_learns_and_features_are_cached(
    digits: Dataset, context: LearnContext
) -> None:
    """The trunk is unchanged; a second run uses cached features, with the same result."""
    recipe = recipe_with("network.train_from=head")
    learned = learn(recipe, digits, context)
    torch.manual_seed(recipe.training.seed)
    fresh = build(recipe.network, recipe.geometry, 10).state_dict()
    changed = {
        name for name, value in learned.network.state_dict().items() if not torch.equal(value, fresh[name])
    }
    assert changed == {"head.weight", "head.bias"}
    assert learned.data_digest == digits.digest()
    cached = sorted(context.cache.glob("features-*.npy"))
    assert len(cached) == 2
    ages = [path.stat().st_mtime_ns for path in cached]
    context.folder.checkpoint.unlink()
    again = learn(recipe, digits, context)
    assert [path.stat().st_mtime_ns for path in sorted(context.cache.glob("features-*.npy"))] == ages
    assert torch.equal(again.network.state_dict()["head.weight"], learned.network.state_dict()["head.weight"])


def test_a_head_with_hidden_layers_learns_and_is_exported(
    digits: Dataset, context: LearnContext, tmp_path: Path
) -> None:
    """On cached features of a frozen trunk; its layers have names, and take the head's learning rate."""
    recipe = recipe_with("network.train_from=head", "network.head_hidden=[24, 12]", "network.dropout=0.1")
    network = learn(recipe, digits, context).network
    torch.manual_seed(recipe.training.seed)
    fresh = build(recipe.network, recipe.geometry, 10).state_dict()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, fresh[name])}
    names = ("dense1", "dense2", "output")
    assert changed == {f"head.{name}.{kind}" for name in names for kind in ("weight", "bias")}
    *_, head = make_optimizer(network, recipe.training).param_groups
    assert [tuple(value.shape) for value in head["params"]] == [(24, 512), (12, 24), (10, 12)]
    export(Classifier(network, temperature=1.0), recipe.geometry, tmp_path / "model.onnx")
    layers = {layer.name: layer.weights.shape for layer in read_layers(tmp_path / "model.onnx")}
    assert list(layers.items())[-3:] == [
        ("head.dense1", (24, 512)),
        ("head.dense2", (12, 24)),
        ("head.output", (10, 12)),
    ]
    assert isinstance(layer_named(network, "head.dense2"), torch.nn.Linear)
    shapes = {layer.name: layer.output for layer in list_layers(recipe.network, recipe.geometry, 10)}
    assert list(shapes)[-3:] == ["head.relu2", "head.dropout2", "head.output"]
    assert shapes["head.dropout1"] == (24,)


def test_a_damaged_cache_is_computed_again(digits: Dataset, context: LearnContext) -> None:
    """A truncated file, or one of another shape, is replaced."""
    recipe = recipe_with("network.train_from=head")
    learned = learn(recipe, digits, context)
    first, second = sorted(context.cache.glob("features-*.npy"))
    first.write_bytes(first.read_bytes()[:100])
    np.save(second, np.zeros((3, 3), np.float32))
    context.folder.checkpoint.unlink()
    again = learn(recipe, digits, context)
    assert torch.equal(again.network.state_dict()["head.weight"], learned.network.state_dict()["head.weight"])


def test_from_a_layer_on_the_rest_learns(digits: Dataset, context: LearnContext) -> None:
    """Layers before the named one keep their weights during training."""
    recipe = recipe_with("network.train_from=features.11", "training.epochs=1")
    learned = learn(recipe, digits, context)
    torch.manual_seed(recipe.training.seed)
    fresh = build(recipe.network, recipe.geometry, 10).state_dict()
    changed = {
        name for name, value in learned.network.state_dict().items() if not torch.equal(value, fresh[name])
    }
    assert {name.split(".")[2] if name.startswith("trunk.") else "head" for name in changed} == {
        "11",
        "12",
        "head",
    }


class Recording(Display):
    """Notes every finished step, and the length of each bar."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.steps: list[int] = []
        self.totals: list[int] = []

    @contextmanager
    def training(self, total_steps: int, batch_size: int) -> Iterator[None]:
        """Note the length of the bar."""
        self.totals.append(total_steps)
        with super().training(total_steps, batch_size):
            yield

    def step_done(self, steps: int) -> None:
        """Note the step."""
        self.steps.append(steps)


class Epochs:
    """A logger that keeps the numbers of the epochs, and stops the run at one of them."""

    def __init__(self, interrupts: Interrupts, stop_at: int | None = None) -> None:
        self.numbers: list[int] = []
        self._interrupts = interrupts
        self._stop_at = stop_at

    def epoch(self, record: EpochRecord) -> None:
        """Keep the number."""
        self.numbers.append(record.epoch)
        if record.epoch == self._stop_at:
            self._interrupts.received = signal.SIGTERM

    def pictures(self, pictures: Mapping[str, bytes], network: Network, geometry: Geometry) -> None:
        """Ignored."""

    def result(self, metrics: Mapping[str, int | float]) -> None:
        """Ignored."""

    def close(self, *, finished: bool) -> None:
        """Ignored."""


def test_head_and_full_epochs_share_one_history_and_one_axis_of_steps(
    digits: Dataset, context: LearnContext, job: Job
) -> None:
    """Two of the head and two of the rest are epochs 1 to 4 for loggers and bar, after a resume too."""
    recipe = recipe_with("network.train_from=features.11", "training.head_epochs=2")
    display, logger = Recording(), Epochs(context.interrupts)
    learned = learn(recipe, digits, replace(context, display=display, loggers=(logger,)))
    assert [record.epoch for record in learned.history] == logger.numbers == [1, 2, 3, 4]
    assert [record.head_only for record in learned.history] == [True, True, False, False]
    assert learned.best_epoch in (3, 4)
    steps = display.totals[0] // 4
    assert display.totals == [4 * steps, 4 * steps]
    assert display.steps == list(range(1, 4 * steps + 1))

    folder = RunFolder(job.run_dir / "resumed")
    folder.path.mkdir()
    stopped = replace(context, folder=folder, interrupts=Interrupts())
    first = Epochs(stopped.interrupts, stop_at=2)
    with pytest.raises(Interrupted, match="saved in epoch 3 after step 1"):
        learn(recipe, digits, replace(stopped, loggers=(first,)))
    written = torch.load(folder.head_checkpoint, weights_only=True)
    for number, record in enumerate(written["history"], 11):  # however older versions counted them
        record["epoch"] = number
        del record["head_only"]
    torch.save(written, folder.head_checkpoint)
    second = Epochs(stopped.interrupts)
    resumed = learn(recipe, digits, replace(stopped, interrupts=Interrupts(), loggers=(second,)))
    assert first.numbers + second.numbers == [1, 2, 3, 4]
    assert [(record.epoch, record.head_only, record.validation_loss) for record in resumed.history] == [
        (record.epoch, record.head_only, record.validation_loss) for record in learned.history
    ]


def test_a_whole_run_on_a_backbone_is_published(job: Job) -> None:
    """From data to proof: the manifest has the size, and no pretrained weights."""
    summary = train_and_evaluate(recipe_with("network.train_from=head", "gates.allow_zero_recall=true"), job)
    assert summary.verdict == "published", summary.refusal
    manifest = job.repository.read("fake", 1).manifest
    assert manifest.embedding_size == 512
    assert manifest.provenance.pretrained is None
    assert manifest.provenance.parameters == 1_235_496 - 513_000 + 512 * 10 + 10
