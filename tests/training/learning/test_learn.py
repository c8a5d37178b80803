"""The learning methods, on real digits and a small backbone with random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training import data
from training.data import Dataset
from training.learning.learn import LearnContext, learn
from training.networks import build
from training.recipe import Recipe, resolve
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


def test_a_whole_run_on_a_backbone_is_published(job: Job) -> None:
    """From data to proof: the manifest has the size, and no pretrained weights."""
    summary = train_and_evaluate(recipe_with("network.train_from=head", "gates.allow_zero_recall=true"), job)
    assert summary.verdict == "published", summary.refusal
    manifest = job.repository.read("fake", 1).manifest
    assert manifest.embedding_size == 512
    assert manifest.provenance.pretrained is None
    assert manifest.provenance.parameters == 1_235_496 - 513_000 + 512 * 10 + 10
