"""TensorBoard and MLflow get the epochs of history.json, and are optional."""

import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.errors import UsageError
from tests.training.fake_recipe import FakeRecipe
from training.errors import LoggerUnavailable
from training.learning.history import EpochRecord
from training.run.job import Job, train_and_evaluate
from training.run.loggers import open_loggers

RECORD = EpochRecord(
    epoch=3,
    train_loss=0.5,
    validation_loss=0.25,
    validation_accuracy=0.75,
    learning_rate=1e-3,
    images_per_s=100.0,
    seconds=2.0,
)


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    """Each scalar at its epoch, the recipe as text, the scores of the test split."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    with open_loggers(
        ("tensorboard",), tmp_path, run="digits", settings={"training.epochs": 3}, warn=no_warning
    ) as loggers:
        for logger in loggers:
            logger.epoch(RECORD)
            logger.result({"accuracy": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (found,) = events.Scalars("validation_loss")
    assert (found.step, found.value) == (3, 0.25)
    assert events.Scalars("test/accuracy")[0].value == 0.5
    assert "recipe/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    """The message says how to install it."""
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(UsageError, match=rf"--log {name} needs .* pip install {name}"),
        open_loggers((name,), tmp_path, run="digits", settings={}, warn=no_warning),
    ):
        pass


class Mlflow:
    """A fake of the functions of mlflow that are used; it can be unreachable."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.down = False

    def is_tracking_uri_set(self) -> bool:
        """Nobody warnings where."""
        return False

    def set_tracking_uri(self, uri: str) -> None:
        """Record the call."""
        self._call("uri", uri)

    def set_experiment(self, name: str) -> None:
        """Record the call."""
        self._call("experiment", name)

    def start_run(self, run_name: str) -> None:
        """Record the call."""
        self._call("start", run_name)

    def log_params(self, params: dict[str, object]) -> None:
        """Record the call."""
        self._call("params", params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record the call."""
        self._call("metrics", metrics, step)

    def end_run(self, status: str) -> None:
        """Record the call."""
        self._call("end", status)

    def _call(self, *call: object) -> None:
        if self.down:
            raise ConnectionError("connection refused\nand much more")
        self.calls.append(call)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    """The fake, in place of the package."""
    fake = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def no_warning(text: str) -> None:
    """Nothing is to be warnings."""
    raise AssertionError(text)


def test_mlflow_gets_parameters_history_and_result(tmp_path: Path, mlflow: Mlflow) -> None:
    """One call for the recipe, one per epoch, one for the result; the run is closed."""
    with open_loggers(("mlflow",), tmp_path, run="digits", settings={"a": 1}, warn=no_warning) as (logger,):
        logger.epoch(RECORD)
        logger.result({"accuracy": 1})
    assert mlflow.calls[0] == ("uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert mlflow.calls[1:4] == [("experiment", "lenserve"), ("start", "digits"), ("params", {"a": 1})]
    (_, epoch, step), *rest = mlflow.calls[4:]
    assert (epoch["validation_loss"], step) == (0.25, 3)
    assert rest == [("metrics", {"test.accuracy": 1.0}, None), ("end", "FINISHED")]


def test_a_temporary_failure_stops_nothing_and_loses_nothing(tmp_path: Path, mlflow: Mlflow) -> None:
    """One warning; the next epoch sends what was missed, in order. A failed run is closed as failed."""
    warned: list[str] = []

    def run_and_fail() -> None:
        with open_loggers(("mlflow",), tmp_path, run="digits", settings={}, warn=warned.append) as (logger,):
            mlflow.down = True
            logger.epoch(replace(RECORD, epoch=1))
            logger.epoch(replace(RECORD, epoch=2))
            mlflow.down = False
            logger.epoch(RECORD)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_and_fail()
    assert warned == ["mlflow failed, retrying after the next epoch: ConnectionError: connection refused"]
    assert [call[2] for call in mlflow.calls if call[0] == "metrics"] == [1, 2, 3]
    assert mlflow.calls[-1] == ("end", "FAILED")


def test_missing_entries_are_reported_at_the_end(tmp_path: Path, mlflow: Mlflow) -> None:
    """The run still succeeds."""
    warned: list[str] = []
    with open_loggers(("mlflow",), tmp_path, run="digits", settings={}, warn=warned.append) as (logger,):
        mlflow.down = True
        logger.epoch(RECORD)
    assert warned[1:] == ["mlflow: the last 2 entries are missing; the report's history.json has all epochs"]


def test_an_unreachable_server_at_start_is_an_error(tmp_path: Path, mlflow: Mlflow) -> None:
    """Before training, in one line."""
    mlflow.down = True
    message = (
        r"^--log mlflow cannot be opened: ConnectionError: connection refused; "
        r"correct it, or run without --log mlflow$"
    )
    with (
        pytest.raises(LoggerUnavailable, match=message),
        open_loggers(("mlflow",), tmp_path, run="digits", settings={}, warn=no_warning),
    ):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's dependencies
def test_mlflow_reads_what_was_logged(tmp_path: Path) -> None:
    """The real package, if installed: parameters, each epoch, the result, the status."""
    pytest.importorskip("mlflow")
    with open_loggers(("mlflow",), tmp_path, run="digits", settings={"a": 1}, warn=no_warning) as (logger,):
        logger.epoch(RECORD)
        logger.result({"accuracy": 1})
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("digits", "FINISHED")]
        assert database.execute("SELECT key, value FROM params").fetchall() == [("a", "1")]
        metrics = dict(database.execute("SELECT key, value FROM metrics"))
    assert (metrics["validation_loss"], metrics["test.accuracy"]) == (0.25, 1.0)


def test_a_run_logs_every_epoch(job: Job, fake_recipe: FakeRecipe) -> None:
    """A run writes event files into its folder, with the report's pictures and the network."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    recipe = fake_recipe("training.epochs=1", "gates.max_ece=1e-9", "report.images=all")
    train_and_evaluate(recipe, replace(job, loggers=("tensorboard",)))
    events = EventAccumulator(str(job.run_dir / "tensorboard")).Reload()
    assert {"confusion", "predictions", "training-images"} <= set(events.Tags()["images"])
    assert events.Tags()["graph"]
    assert len(events.Scalars("train_accuracy")) == 1
