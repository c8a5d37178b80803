"""Logs the history of a run to TensorBoard and MLflow, if requested, and to Kubeflow, if it runs there.

A logger that cannot be opened is an error before training. Later failures, such as an unreachable tracking
server or a full disk, do not stop the run: failed entries are sent again after the next epoch.
"""

import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from serving.bundle import Geometry
from serving.errors import UsageError
from training.errors import LoggerUnavailable
from training.learning.history import EpochRecord
from training.networks import Network
from training.run.trainjob_status import is_trainjob, status_of_trainjob

_SCALARS = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("learning_rate", "images_per_s"),
)

# By default MLflow retries for minutes, even if the server refuses connections.
_MLFLOW_RETRY_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Logger(Protocol):
    """Receives the history of a run while it trains."""

    def epoch(self, record: EpochRecord) -> None:
        """Log an epoch. After a resume, only new epochs are logged."""

    def pictures(self, pictures: Mapping[str, bytes], network: Network, geometry: Geometry) -> None:
        """Log the report's pictures by file name, and the network."""

    def result(self, metrics: Mapping[str, int | float]) -> None:
        """Log the main scores of the finished run."""

    def close(self, *, finished: bool) -> None:
        """Close; `finished` is False if the run failed or was stopped."""


@contextmanager
def open_loggers(
    names: tuple[str, ...],
    folder: Path,
    *,
    run: str,
    settings: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Iterator[tuple[Logger, ...]]:
    """Open loggers; close them at the end, also after an error.

    Args:
        names: tensorboard, mlflow. A TrainJob of Kubeflow is always reported to.
        folder: folder of the run; TensorBoard writes to its subfolder tensorboard/, MLflow to
            MLFLOW_TRACKING_URI or to the file mlflow.db.
        run: name of the run.
        settings: settings of the recipe, dotted key -> value.
        warn: called when a logger fails, and at the end if entries are missing.

    Raises:
        UsageError: a package is not installed.
        LoggerUnavailable: a logger cannot be opened.
    """
    opened: list[_RetryingLogger] = []
    finished = False
    asked = (*names, *(["kubeflow"] if is_trainjob() else ()))
    try:
        opened.extend(
            _RetryingLogger(name, _open(name, folder, run, settings), warn) for name in dict.fromkeys(asked)
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
        raise UsageError(
            f"--log {name} needs the package {name}, which is not installed: pip install {name}"
        ) from error
    except Exception as error:  # any error of the package
        raise LoggerUnavailable(
            f"--log {name} cannot be opened: {_first_line(error)}; correct it, or run without --log {name}"
        ) from error


class _RetryingLogger:
    """A logger that keeps failed entries, and sends them with the next one."""

    def __init__(self, name: str, logger: Logger, warn: Callable[[str], None]) -> None:
        self._name = name
        self._logger = logger
        self._warn = warn
        self._pending: deque[Callable[[], None]] = deque()
        self._failing = False

    def epoch(self, record: EpochRecord) -> None:
        self._send(partial(self._logger.epoch, record))

    def pictures(self, pictures: Mapping[str, bytes], network: Network, geometry: Geometry) -> None:
        self._send(partial(self._logger.pictures, pictures, network, geometry))

    def result(self, metrics: Mapping[str, int | float]) -> None:
        self._send(partial(self._logger.result, metrics))

    def close(self, *, finished: bool) -> None:
        self._send(partial(self._logger.close, finished=finished))
        if self._pending:
            missing = f"{self._name}: the last {len(self._pending)} entries are missing"
            self._warn(f"{missing}; the report's history.json has all epochs")

    def _send(self, newest: Callable[[], None]) -> None:
        self._pending.append(newest)
        while self._pending:
            try:
                self._pending[0]()
            except Exception as error:  # noqa: BLE001 - any error of the package
                if not self._failing:
                    self._warn(f"{self._name} failed, retrying after the next epoch: {_first_line(error)}")
                self._failing = True
                return
            self._pending.popleft()
        self._failing = False


class _TensorBoard:
    """Writes event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        lines = "\n".join(f"    {key} = {value!r}" for key, value in settings.items())
        self._writer.add_text("recipe", f"{run}\n\n{lines}")

    def epoch(self, record: EpochRecord) -> None:
        for name, value in _scalars(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def pictures(self, pictures: Mapping[str, bytes], network: Network, geometry: Geometry) -> None:
        for name, content in pictures.items():
            if name.endswith(".png"):
                with Image.open(io.BytesIO(content)) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image(name.removesuffix(".png"), pixels, 0, dataformats="HWC")
        image = torch.zeros((1, *geometry.shape), dtype=torch.uint8)
        # TensorBoard traces the network with torch.jit, which is deprecated and warns of constant shapes.
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            self._writer.add_graph(network, image)

    def result(self, metrics: Mapping[str, int | float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"test/{name}", value, 0)

    def close(self, *, finished: bool) -> None:
        del finished  # event files have no status
        self._writer.close()


class _Mlflow:
    """Logs to a run of MLflow Tracking."""

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

    def pictures(self, pictures: Mapping[str, bytes], network: Network, geometry: Geometry) -> None:
        """Do nothing: the report has them."""

    def result(self, metrics: Mapping[str, int | float]) -> None:
        self._mlflow.log_metrics({f"test.{name}": float(value) for name, value in metrics.items()})

    def close(self, *, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "FAILED")


class _Kubeflow:
    """Reports to the TrainJob that this run is."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        del folder, run  # the job has its own name
        self._status = status_of_trainjob(settings)

    def epoch(self, record: EpochRecord) -> None:
        self._status.epoch(record)

    def pictures(self, pictures: Mapping[str, bytes], network: Network, geometry: Geometry) -> None:
        """Do nothing: the report has them."""

    def result(self, metrics: Mapping[str, int | float]) -> None:
        self._status.result(metrics)

    def close(self, *, finished: bool) -> None:
        """Do nothing: Kubernetes sees how the process ends."""


def _scalars(record: EpochRecord) -> dict[str, float]:
    values = asdict(record)
    return {name: float(values[name]) for name in _SCALARS if values[name] is not None}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


_LOGGERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
    "kubeflow": _Kubeflow,
}
