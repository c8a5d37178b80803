"""ModelStatistics over a real channel: the counters under Triton's names."""

from collections.abc import AsyncIterator

import pytest
from google.protobuf import json_format

from serving.pb.inference import grpc_service_pb2 as pb
from serving.server import Server
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.counting_turns import CountingTurns
from tests.serving.stub import Connect

STATISTICS = "inference.GRPCInferenceService/ModelStatistics"


@pytest.fixture
async def server(publish: Publish, serve: Serve) -> AsyncIterator[Server]:
    """A server of two models, one of which has handled requests."""
    publish()
    publish("shapes")
    async with serve() as server:
        version = server.metrics.version("colours", 1)
        version.record_decode(0.5)
        version.record_run(3, 0.25, [0.125, 0.125])
        version.record_run(3, 0.25, [0.0])
        version.record_run(1, 0.125, [0.0])
        version.record_ranking(0.125)
        version.record_success(3, 1.0)
        version.record_success(1, 0.5)
        version.record_failure("OVERLOADED", 0.25)
        yield server


async def test_statistics_are_the_metrics_in_nanoseconds(server: Server, connect: Connect) -> None:
    """Counts of requests, images and runs; durations; every batch size."""
    answer = await connect(server.grpc.port).call(STATISTICS, pb.ModelStatisticsRequest(name="colours"))

    (statistics,) = answer.model_stats
    assert statistics.last_inference > 1.7e12
    actual = json_format.MessageToDict(statistics, preserving_proto_field_name=True)
    del actual["last_inference"]
    assert actual == {
        "name": "colours",
        "version": "1",
        "inference_count": "7",
        "execution_count": "3",
        "inference_stats": {
            "success": {"count": "2", "ns": "1500000000"},
            "fail": {"count": "1", "ns": "250000000"},
            "queue": {"count": "2", "ns": "250000000"},
            "compute_input": {"count": "2", "ns": "500000000"},
            "compute_infer": {"count": "2", "ns": "875000000"},
            "compute_output": {"count": "2", "ns": "125000000"},
        },
        "batch_stats": [
            {"batch_size": "1", "compute_infer": {"count": "1", "ns": "125000000"}},
            {"batch_size": "3", "compute_infer": {"count": "2", "ns": "500000000"}},
        ],
    }


@pytest.mark.parametrize(("name", "models"), [("colours", 1), ("", 2)])
async def test_the_work_is_proportional_to_the_models(
    server: Server, connect: Connect, name: str, models: int
) -> None:
    """Statistics of 1,000 models take 17 ms: of several calls, one runs in a turn of the event loop."""
    server.classifier.turns = turns = CountingTurns()
    await connect(server.grpc.port).call(STATISTICS, pb.ModelStatisticsRequest(name=name))
    assert turns.costs_us == [20 * models]


async def test_stages_count_requests_that_ended(server: Server, connect: Connect) -> None:
    """Also while one waits between its run and its response: perf_analyzer stops if the counts differ."""
    server.metrics.version("colours", 1).record_run(1, 0.125, [0.0])

    answer = await connect(server.grpc.port).call(STATISTICS, pb.ModelStatisticsRequest(name="colours"))

    actual = answer.model_stats[0].inference_stats
    stages = (actual.success, actual.queue, actual.compute_input, actual.compute_infer, actual.compute_output)
    assert [stage.count for stage in stages] == [2] * 5
    assert actual.compute_infer.ns == 1_000_000_000


async def test_statistics_of_all_models_of_one_and_of_a_version(server: Server, connect: Connect) -> None:
    """An empty name means all; a version without requests has zeros."""
    stub = connect(server.grpc.port)
    asked = [{}, {"name": "shapes"}, {"name": "colours", "version": "1"}]

    answers = [await stub.call(STATISTICS, pb.ModelStatisticsRequest(**each)) for each in asked]

    actual = [
        [(each.name, each.version, each.inference_count) for each in one.model_stats] for one in answers
    ]
    assert actual == [[("colours", "1", 7), ("shapes", "1", 0)], [("shapes", "1", 0)], [("colours", "1", 7)]]


@pytest.mark.parametrize("asked", [{"name": "sounds"}, {"name": "colours", "version": "7"}])
async def test_statistics_of_unknown_models_are_not_found(
    server: Server, connect: Connect, asked: dict[str, str]
) -> None:
    """As for every method."""
    refusal = await connect(server.grpc.port).refusal(STATISTICS, pb.ModelStatisticsRequest(**asked))

    assert refusal.code == "NOT_FOUND"
