"""Where else the history of a run goes: TensorBoard and MLflow, each only where it is asked for."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from serving.errors import UsageError
from training.history import EpochRecord

_SCALARS = ("train_loss", "validation_loss", "validation_accuracy", "learning_rate", "images_per_s")


class Logger(Protocol):
    """Takes what a run learns about itself, as it learns it."""

    def epoch(self, record: EpochRecord) -> None:
        """One line of the history; after a resume, only the new ones."""

    def result(self, metrics: Mapping[str, int | float]) -> None:
        """The headline of the finished run."""


@contextmanager
def open_loggers(
    names: tuple[str, ...], folder: Path, *, run: str, settings: Mapping[str, Any]
) -> Iterator[tuple[Logger, ...]]:
    """Start the loggers of these names, and close them whatever happens.

    Args:
        names: tensorboard, mlflow.
        folder: of the run; TensorBoard writes to its subfolder tensorboard/, MLflow wherever
            MLFLOW_TRACKING_URI points, or to the subfolder mlflow/.
        run: its name.
        settings: of the recipe, dotted key -> value.

    Raises:
        UsageError: a package is not installed, by its name and how to install it.
    """
    with ExitStack() as stack:
        yield tuple(
            stack.enter_context(_LOGGERS[name](folder, run, settings)) for name in dict.fromkeys(names)
        )


class _TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, writer: Any) -> None:  # noqa: ANN401 - of a package that may be missing
        self._writer = writer

    def epoch(self, record: EpochRecord) -> None:
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def result(self, metrics: Mapping[str, int | float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"test/{name}", value, 0)


class _Mlflow:
    """A run of MLflow's tracking."""

    def __init__(self, mlflow: ModuleType) -> None:
        self._mlflow = mlflow

    def epoch(self, record: EpochRecord) -> None:
        self._mlflow.log_metrics(dict(_scalars(record)), step=record.epoch)

    def result(self, metrics: Mapping[str, int | float]) -> None:
        self._mlflow.log_metrics({f"test.{name}": float(value) for name, value in metrics.items()})


@contextmanager
def _open_tensorboard(folder: Path, run: str, settings: Mapping[str, Any]) -> Iterator[Logger]:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _missing("tensorboard") from error
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        lines = "\n".join(f"    {key} = {value!r}" for key, value in settings.items())
        writer.add_text("recipe", f"{run}\n\n{lines}")
        yield _TensorBoard(writer)


@contextmanager
def _open_mlflow(folder: Path, run: str, settings: Mapping[str, Any]) -> Iterator[Logger]:
    try:
        import mlflow  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _missing("mlflow") from error
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    mlflow.set_experiment("lenserve")
    with mlflow.start_run(run_name=run):
        mlflow.log_params(dict(settings))
        yield _Mlflow(mlflow)


def _scalars(record: EpochRecord) -> list[tuple[str, float]]:
    values = asdict(record)
    return [(name, float(values[name])) for name in _SCALARS]


def _missing(package: str) -> UsageError:
    return UsageError(f"--log {package} needs a package that is not installed: pip install {package}")


_LOGGERS = {"tensorboard": _open_tensorboard, "mlflow": _open_mlflow}
