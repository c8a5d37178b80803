"""TensorBoard and MLflow get what history.json has, and are not needed."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import UsageError
from training.history import EpochRecord
from training.job import Job, train_and_evaluate
from training.loggers import open_loggers
from training.recipe import Recipe

RECORD = EpochRecord(
    epoch=3,
    train_loss=0.5,
    validation_loss=0.25,
    validation_accuracy=0.75,
    learning_rate=1e-3,
    images_per_s=100.0,
    seconds=2.0,
)


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    """Each scalar at its epoch, the recipe as text, the headline of the test split."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    with open_loggers(("tensorboard",), tmp_path, run="digits", settings={"training.epochs": 3}) as loggers:
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
    """Asked for and not installed: one line that says how to get it."""
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(UsageError, match=rf"--log {name} needs .* pip install {name}"),
        open_loggers((name,), tmp_path, run="digits", settings={}),
    ):
        pass


def test_mlflow_gets_parameters_history_and_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for the recipe, one an epoch, one for the result; the run is closed."""
    told: list[tuple[object, ...]] = []

    class Run:
        """What start_run gives."""

        def __enter__(self) -> None:
            told.append(("start",))

        def __exit__(self, *error: object) -> None:
            told.append(("end",))

    class Mlflow:
        """The functions of mlflow that are used, by their names and arguments there."""

        is_tracking_uri_set = staticmethod(lambda: False)
        set_tracking_uri = staticmethod(lambda uri: told.append(("uri", uri)))
        set_experiment = staticmethod(lambda name: told.append(("experiment", name)))
        start_run = staticmethod(lambda **_: Run())
        log_params = staticmethod(lambda params: told.append(("params", params)))
        log_metrics = staticmethod(lambda metrics, step=None: told.append(("metrics", metrics, step)))

    monkeypatch.setitem(sys.modules, "mlflow", Mlflow)
    with open_loggers(("mlflow",), tmp_path, run="digits", settings={"a": 1}) as (logger,):
        logger.epoch(RECORD)
        logger.result({"accuracy": 1})
    assert told[0][0] == "uri"
    assert str(told[0][1]).startswith("sqlite:///")
    assert told[1:4] == [("experiment", "lenserve"), ("start",), ("params", {"a": 1})]
    assert told[4][2] == 3
    assert told[4][1]["validation_loss"] == 0.25
    assert told[5:] == [("metrics", {"test.accuracy": 1.0}, None), ("end",)]


def test_a_run_logs_every_epoch(job: Job, fake_recipe: Callable[..., Recipe]) -> None:
    """The real job writes event files into its run folder."""
    pytest.importorskip("tensorboard")
    recipe = fake_recipe("training.epochs=1", "gates.max_ece=1e-9")
    train_and_evaluate(recipe, replace(job, loggers=("tensorboard",)))
    assert list((job.run_dir / "tensorboard").glob("events.*"))
