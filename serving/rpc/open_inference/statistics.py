"""ModelStatistics: the metrics of each served version, as Triton's messages."""

from collections.abc import Iterator, Sequence

from serving.metrics.recorder import Metrics
from serving.metrics.triton_statistics import TimedCount, VersionStatistics
from serving.models.registry import Models
from serving.models.versions import Revision
from serving.pb.inference import grpc_service_pb2 as pb

_NS_PER_S = 1e9
_MS_PER_S = 1e3


def model_statistics(
    models: Models, metrics: Metrics, *, names: Sequence[str], revision: Revision
) -> Iterator[pb.ModelStatistics]:
    """Return the statistics of served versions, sorted by model and number.

    Args:
        models: the served models.
        metrics: counters of the server.
        names: models, sorted.
        revision: version, by number or alias; None for all.

    Raises:
        UnknownModel, ModelUnavailable: the model or version is not served.
    """
    totals = metrics.statistics()
    for model in names:
        for number in _numbers(models, model, revision):
            yield _encode(model, number, totals.get((model, str(number)), VersionStatistics()))


def _numbers(models: Models, model: str, revision: Revision) -> list[int]:
    if revision is None:
        return sorted(models.get(model).versions)
    with models.lease(model, revision) as version:
        return [version.number]


def _encode(model: str, number: int, statistics: VersionStatistics) -> pb.ModelStatistics:
    def of_requests(timed: TimedCount) -> pb.StatisticDuration:
        # The total over all images and parts of requests: clients divide by the number of requests, and
        # perf_analyzer stops if these counts differ, even by a request in progress.
        return _duration(TimedCount(statistics.success.count, timed.duration_s))

    return pb.ModelStatistics(
        name=model,
        version=str(number),
        last_inference=round(statistics.last_run_s * _MS_PER_S),
        inference_count=statistics.run_images,
        execution_count=statistics.run_count,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.failure),
            queue=of_requests(statistics.queue),
            compute_input=of_requests(statistics.decode),
            compute_infer=of_requests(statistics.infer),
            compute_output=of_requests(statistics.rank),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=images, compute_infer=_duration(run))
            for images, run in sorted(statistics.runs.items())
        ],
    )


def _duration(timed: TimedCount) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=timed.count, ns=round(timed.duration_s * _NS_PER_S))
