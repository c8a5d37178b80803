"""Runs a batch on Ray Data, on this machine or a cluster: the same `FileClassifier`, in a pool of actors.

Ray runs a chunk again whose actor has died, without end by default. Here it gives up after a second attempt:
the chunk is divided in two, until the image that ended its actors is alone.
"""

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from serving.batch_job.columns import Columns, failed_columns
from serving.batch_job.file_classifier import ClassifierOptions, FileClassifier
from serving.batch_job.local_engine import WorkerDied, halves
from serving.errors import LenserveError, UsageError

# Ray has no other way to set these.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its maker
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its core logs to stderr
}

_RETRIES = 1  # of a chunk whose actor has died


class RayFailed(LenserveError):
    """Ray could not run the batch."""


class RayEngine:
    """Ray Data with one pool of actors, each with its own network."""

    def __init__(
        self,
        options: ClassifierOptions,
        batch_of: Callable[[range], Columns],
        *,
        address: str,
        actors: int,
        load: type = FileClassifier,
    ) -> None:
        """Store the options.

        Args:
            options: of the classifier of every actor.
            batch_of: returns the columns of a range of rows.
            address: of a running cluster, such as auto or HOST:PORT; local starts Ray on this machine.
            actors: how many; 0: one for each CPU, or each GPU if there are any.
            load: the class of the actors; of a module that they can import.
        """
        self._options = options
        self._batch_of = batch_of
        self._address = address
        self._actors = actors
        self._load = load

    def run(self, chunks: Iterable[range]) -> Iterator[Columns]:
        """Classify chunks; yield results in the order in which they are ready.

        Raises:
            UsageError: Ray is not installed, the cluster does not answer, or a path is not UTF-8.
            RayFailed: an actor failed.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import ray  # noqa: PLC0415 - of an extra
            import ray.data  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise UsageError("--engine ray needs Ray: in a checkout, pip install '.[ray]'") from error
        try:
            ray.init(
                address=self._address, log_to_driver=False, logging_level="error", include_dashboard=False
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--ray-address {self._address}: {error}") from error
        try:
            first, answered = list(chunks), set[int]()
            for columns in self._results(ray, first):
                answered.update(columns["row"].tolist())
                yield columns
            if not answered and len(first) > 1:
                raise RayFailed("Ray's actors failed on all images: see the logs of Ray")
            yield from self._one_by_one(ray, [chunk for chunk in first if chunk.start not in answered])
        finally:
            ray.shutdown()

    def _one_by_one(self, ray: Any, lost: list[range]) -> Iterator[Columns]:  # noqa: ANN401 - untyped library
        """Run chunks again whose actor died: each alone, since others that waited there were lost too."""
        suspects = deque(lost)
        while suspects:
            chunk = suspects.popleft()
            results = list(self._results(ray, [chunk], actors=1))
            if results:
                yield from results
            elif len(chunk) > 1:
                suspects.extendleft(reversed(halves(chunk)))
            else:
                error = WorkerDied("the actor that decoded this image died, or failed")
                yield failed_columns(self._batch_of(chunk), error)

    def _results(self, ray: Any, chunks: Iterable[range], actors: int = 0) -> Iterator[Columns]:  # noqa: ANN401 - untyped library
        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1  # go on with the other chunks
        context.enable_progress_bars = False  # the progress of the job is shown
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        resources = ray.cluster_resources()
        gpus = 0 if self._options.device == "cpu" else int(resources.get("GPU", 0))
        actors = actors or self._actors or gpus or int(resources.get("CPU", 1))
        tables = [_table(self._batch_of(chunk)) for chunk in chunks]
        # Ray 2.60 deprecates other arguments than the few it names, and has no name for max_task_retries.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        results = ray.data.from_arrow(tables).map_batches(
            self._load,
            fn_constructor_args=(self._options,),
            batch_size=None,  # a block as it is: one chunk
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(tables))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            max_task_retries=_RETRIES,
        )
        try:
            yield from results.iter_batches(batch_size=None)
        except ray.exceptions.RayError as error:
            raise RayFailed(f"Ray could not run the batch: {_cause(error)}") from error


def _table(columns: Columns) -> Any:  # noqa: ANN401 - untyped library
    import pyarrow as pa  # noqa: PLC0415 - Ray Data requires it

    try:
        return pa.table({name: np.asarray(values) for name, values in columns.items()})
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the path {error.object!r} is not UTF-8, which Ray requires: rename it, or use --engine local"
        ) from error


def _cause(error: Exception) -> str:
    """Return the last line of a message of Ray: the exception in the actor, below its frames."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
