"""Fixtures of the training tests: real data, and one small run that the tests share."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from serving.bundle import Bundle, Repository
from tests.training.fake_recipe import FakeRecipe
from training.devices.device import choose
from training.recipe import Recipe, resolve
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job, train_and_evaluate
from training.run.summary import RunSummary


@pytest.fixture(scope="session")
def display() -> Display:
    """A display that prints nothing."""
    return Display(Console(quiet=True))


@pytest.fixture
def job(tmp_path: Path, display: Display) -> Job:
    """A job with its own repository and run folder."""
    return _job(tmp_path, display)


@pytest.fixture(scope="session")
def digits_recipe() -> Recipe:
    """lenet5-digits, cut to three epochs and without variants."""
    return resolve("lenet5-digits", ["training.epochs=3", "gates.min_accuracy=0.9", "variants.precisions=[]"])


@pytest.fixture(scope="session")
def digits_job(tmp_path_factory: pytest.TempPathFactory, display: Display) -> Job:
    """The job of the digits' run."""
    return replace(_job(tmp_path_factory.mktemp("digits"), display), model="lenet5-digits")


@pytest.fixture(scope="session")
def digits_summary(digits_recipe: Recipe, digits_job: Job) -> RunSummary:
    """The outcome of the digits' run."""
    return train_and_evaluate(digits_recipe, digits_job)


@pytest.fixture(scope="session")
def digits_bundle(digits_summary: RunSummary, digits_job: Job) -> Bundle:
    """The bundle that the digits' run published."""
    assert digits_summary.version == 1
    return digits_job.repository.read("lenet5-digits", 1)


@pytest.fixture(scope="session")
def fake_recipe() -> FakeRecipe:
    """lenet5-fake with overrides."""
    return lambda *overrides: resolve("lenet5-fake", overrides)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; the test is skipped if there is none."""
    named = os.environ.get("LENSERVE_TEST_DATA")
    root = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no real data in {root}: set LENSERVE_TEST_DATA")
    return root


def _job(folder: Path, display: Display) -> Job:
    return Job(
        repository=Repository(folder / "repository"),
        model="fake",
        run_dir=folder / "run",
        data_root=None,
        device=choose("cpu"),
        display=display,
        interrupts=Interrupts(),
    )
