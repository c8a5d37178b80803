"""Where else the history of a run goes: TensorBoard and MLflow, each only where it is asked for.

What cannot begin is an error before anything is trained. Later a tracking server that fails, or a full disk,
ends no run: what was not taken is sent again after the next epoch.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from serving.errors import UsageError
from training.errors import LoggerUnavailable
from training.learning.history import EpochRecord

_SCALARS = ("train_loss", "validation_loss", "validation_accuracy", "learning_rate", "images_per_s")

# MLflow by itself tries eight times: minutes, even where nobody listens.
_MLFLOW_RETRY_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Logger(Protocol):
    """Takes what a run learns about itself, as it learns it."""

    def epoch(self, record: EpochRecord) -> None:
        """One line of the history; after a resume, only the new ones."""

    def result(self, metrics: Mapping[str, int | float]) -> None:
        """The headline of the finished run."""

    def close(self, *, finished: bool) -> None:
        """Nothing comes any more: the run is finished, or it failed or was stopped."""


@contextmanager
def open_loggers(
    names: tuple[str, ...],
    folder: Path,
    *,
    run: str,
    settings: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Iterator[tuple[Logger, ...]]:
    """Start the loggers of these names, and close them whatever happens.

    Args:
        names: tensorboard, mlflow.
        folder: of the run; TensorBoard writes to its subfolder tensorboard/, MLflow wherever
            MLFLOW_TRACKING_URI points, or to the file mlflow.db.
        run: its name.
        settings: of the recipe, dotted key -> value.
        warn: is told when one takes nothing any more.

    Raises:
        UsageError: a package is not installed, by its name and how to install it.
        LoggerUnavailable: one takes nothing from the beginning.
    """
    opened: list[_RetryingLogger] = []
    finished = False
    try:
        opened.extend(
            _RetryingLogger(name, _open(name, folder, run, settings), warn) for name in dict.fromkeys(names)
        )
        yield tuple(opened)
        finished = True
    finally:
        for logger in opened:
            logger.close(finished=finished)


def _open(name: str, folder: Path, run: str, settings: Mapping[str, Any]) -> Logger:
    try:
        return _LOGGERS[name](folder, run, settings)
    except ImportError as error:
        raise UsageError(f"--log {name} needs a package that is not installed: pip install {name}") from error
    except Exception as error:  # whatever the package raises
        raise LoggerUnavailable(f"--log {name} cannot begin: {_first_line(error)}") from error


class _RetryingLogger:
    """A logger whose failures end nothing. A class because it keeps what was not taken."""

    def __init__(self, name: str, logger: Logger, warn: Callable[[str], None]) -> None:
        self._name = name
        self._logger = logger
        self._warn = warn
        self._pending: deque[Callable[[], None]] = deque()
        self._failing = False

    def epoch(self, record: EpochRecord) -> None:
        self._send(partial(self._logger.epoch, record))

    def result(self, metrics: Mapping[str, int | float]) -> None:
        self._send(partial(self._logger.result, metrics))

    def close(self, *, finished: bool) -> None:
        self._send(partial(self._logger.close, finished=finished))
        if self._pending:
            missing = f"{self._name} lacks the last {len(self._pending)} entries"
            self._warn(f"{missing}; the report's history.json has all epochs")

    def _send(self, newest: Callable[[], None]) -> None:
        self._pending.append(newest)
        while self._pending:
            try:
                self._pending[0]()
            except Exception as error:  # noqa: BLE001 - of a package, its server or its disk
                if not self._failing:
                    self._warn(f"{self._name} takes nothing, and is asked again later: {_first_line(error)}")
                self._failing = True
                return
            self._pending.popleft()
        self._failing = False


class _TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        lines = "\n".join(f"    {key} = {value!r}" for key, value in settings.items())
        self._writer.add_text("recipe", f"{run}\n\n{lines}")

    def epoch(self, record: EpochRecord) -> None:
        for name, value in _scalars(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def result(self, metrics: Mapping[str, int | float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"test/{name}", value, 0)

    def close(self, *, finished: bool) -> None:
        del finished  # event files have no such thing
        self._writer.close()


class _Mlflow:
    """A run of MLflow's tracking."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        for name, value in _MLFLOW_RETRY_SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow  # noqa: PLC0415 - optional

        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        mlflow.set_experiment("lenserve")
        mlflow.start_run(run_name=run)
        mlflow.log_params(dict(settings))
        self._mlflow = mlflow

    def epoch(self, record: EpochRecord) -> None:
        self._mlflow.log_metrics(_scalars(record), step=record.epoch)

    def result(self, metrics: Mapping[str, int | float]) -> None:
        self._mlflow.log_metrics({f"test.{name}": float(value) for name, value in metrics.items()})

    def close(self, *, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "FAILED")


def _scalars(record: EpochRecord) -> dict[str, float]:
    values = asdict(record)
    return {name: float(values[name]) for name in _SCALARS}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


_LOGGERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
}
