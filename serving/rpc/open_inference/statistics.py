"""ModelStatistics: what the metrics know of each served version, as Triton's clients ask for it."""

from collections.abc import Iterator

from serving.metrics.recorder import Metrics
from serving.metrics.triton_statistics import TimedCount, VersionStatistics
from serving.models.registry import Models
from serving.models.versions import Revision
from serving.pb.inference import grpc_service_pb2 as pb

_NS_PER_S = 1e9
_MS_PER_S = 1e3


def model_statistics(
    models: Models, metrics: Metrics, *, name: str, revision: Revision
) -> Iterator[pb.ModelStatistics]:
    """Statistics of served versions, by model and number.

    Args:
        models: says what is served.
        metrics: says what it did.
        name: of one model; empty for all.
        revision: one version of it, by number or alias; None for all.

    Raises:
        UnknownModel, ModelUnavailable: there is no such model, or no such version of it.
    """
    done = metrics.statistics()
    for model in [name] if name else models.names():
        for number in _numbers(models, model, revision):
            yield _encode(model, number, done.get((model, str(number)), VersionStatistics()))


def _numbers(models: Models, model: str, revision: Revision) -> list[int]:
    if revision is None:
        return sorted(models.get(model).versions)
    with models.lease(model, revision) as version:
        return [version.number]


def _encode(model: str, number: int, done: VersionStatistics) -> pb.ModelStatistics:
    def of_requests(timed: TimedCount) -> pb.StatisticDuration:
        # All parts and images of a request together: clients divide by the number of requests, and
        # perf_analyzer ends where these counts differ, be it by a request that runs just now.
        return _duration(TimedCount(done.success.count, timed.duration_s))

    return pb.ModelStatistics(
        name=model,
        version=str(number),
        last_inference=round(done.last_run_s * _MS_PER_S),
        inference_count=done.run_images,
        execution_count=done.run_count,
        inference_stats=pb.InferStatistics(
            success=_duration(done.success),
            fail=_duration(done.failure),
            queue=of_requests(done.queue),
            compute_input=of_requests(done.decode),
            compute_infer=of_requests(done.infer),
            compute_output=of_requests(done.rank),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=images, compute_infer=_duration(run))
            for images, run in sorted(done.runs.items())
        ],
    )


def _duration(timed: TimedCount) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=timed.count, ns=round(timed.duration_s * _NS_PER_S))
