"""Our counts under the names of go-grpc-prometheus."""

import numpy as np
import pytest

from serving.client.client import AsyncClient, CallFailed
from serving.metrics.recorder import Metrics
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.stub import Connect

UNARY = {
    "grpc_type": "unary",
    "grpc_service": "lenserve.v1.Classifier",
    "grpc_method": "Classify",
}


def _handled(metrics: Metrics, code: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(
        "grpc_server_handled_total", {**UNARY, **labels, "grpc_code": code}
    )


@pytest.mark.parametrize("transport", ["h2", "grpc"])
async def test_calls_are_counted_when_they_begin_and_when_they_end(
    serve: Serve, publish: Publish, connect: Connect, transport: str
) -> None:
    """With Go's names of the codes; a stream is one call, whatever its number of messages."""
    publish()
    image = np.zeros((8, 8, 3), np.uint8)  # (H, W, C)
    async with serve(transport=transport) as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
        value = server.metrics.registry.get_sample_value
        assert value("grpc_server_started_total", UNARY) == 0
        await client.classify(image, model="colours")
        for _ in range(2):
            with pytest.raises(CallFailed):
                await client.classify(image, model="unknown")
        assert value("grpc_server_started_total", UNARY) == 3
        assert _handled(server.metrics, "OK") == 1
        assert _handled(server.metrics, "NotFound") == 2


async def test_every_method_has_its_type(serve: Serve) -> None:
    """Watch has one request message, reflection and our streams have many; unknown methods have no type."""
    async with serve() as server:
        types = {
            (sample.labels["grpc_service"], sample.labels["grpc_method"]): sample.labels["grpc_type"]
            for family in server.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_started_total"
        }
    assert types["grpc.health.v1.Health", "Check"] == "unary"
    assert types["grpc.health.v1.Health", "Watch"] == "server_stream"
    assert types["grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"] == "bidi_stream"
    assert types["inference.GRPCInferenceService", "ModelStreamInfer"] == "bidi_stream"
    assert not any("unknown" in name for names in types for name in names)


async def test_counters_that_alerts_read_begin_at_0(serve: Serve, publish: Publish) -> None:
    """An alert on an increase would miss a counter that appears with its first event."""
    publish()
    publish("liars", lie=True)
    async with serve() as server:
        value = server.metrics.registry.get_sample_value
        for code in ("OK", "Internal", "Unavailable", "DeadlineExceeded", "ResourceExhausted"):
            assert _handled(server.metrics, code) == 0, code
        method = {"method": "/inference.GRPCInferenceService/ModelInfer"}
        assert value("lenserve_requests_total", {**method, "code": "INTERNAL"}) == 0
        for reason in ("ENGINE_ERROR", "OVERLOADED", "DEADLINE_EXCEEDED", "INTERNAL"):
            labels = {"model": "colours", "version": "1", "reason": reason}
            assert value("lenserve_request_failures_total", labels) == 0, reason
        for reason in ("pending_bytes", "too_slow"):
            assert value("lenserve_refused_requests_total", {"reason": reason}) == 0, reason
        assert value("lenserve_version_load_failures_total", {"model": "colours"}) == 0
        assert value("lenserve_version_load_failures_total", {"model": "liars"}) == 1
