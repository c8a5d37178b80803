"""The HTTP port for operators: probes and metrics."""

import asyncio
import socket
import urllib.error
import urllib.request
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from serving.admin.http_server import HttpServer
from serving.client.client import AsyncClient
from serving.errors import AddressUnavailable
from tests.colours import Publish
from tests.servers import Serve


async def _get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


def _http(*, port: int = 0, live: bool = True, ready: bool = True, problem: str = "") -> HttpServer:
    registry = CollectorRegistry()
    Counter("seen", "Things seen", registry=registry).inc(3)
    serve = partial(
        HttpServer, host="127.0.0.1", port=port, registry=registry, live=lambda: live, ready=lambda: ready
    )
    return serve(problem=lambda: problem) if problem else serve()


@pytest.mark.parametrize(
    ("live", "ready", "codes"),
    [(True, True, [200, 200]), (True, False, [200, 503]), (False, False, [503, 503])],
)
async def test_probes_answer_200_or_503(*, live: bool, ready: bool, codes: list[int]) -> None:
    """Kubernetes reads only the status code."""
    async with _http(live=live, ready=ready) as http:
        assert [(await _get(http.port, path))[0] for path in ("/livez", "/readyz")] == codes


async def test_a_failed_probe_gives_the_problem() -> None:
    """For debugging; "no" without a description."""
    async with _http(ready=False) as plain, _http(ready=False, problem="worker 2 is dead") as described:
        assert await _get(plain.port, "/readyz") == (503, "no\n")
        assert await _get(described.port, "/readyz") == (503, "worker 2 is dead\n")


async def test_metrics_have_prometheus_text_format() -> None:
    """A scrape shows the registry."""
    async with _http() as http:
        code, text = await _get(http.port, "/metrics")

    assert code == 200
    assert "seen_total 3.0" in text.splitlines()


async def test_other_paths_are_not_found() -> None:
    """The body has the three paths."""
    async with _http() as http:
        assert await _get(http.port, "/") == (404, "not found: try /metrics, /livez or /readyz\n")


async def test_a_port_in_use_is_an_error() -> None:
    """The message has the address and the reason."""
    async with _http() as first:
        with pytest.raises(
            AddressUnavailable, match=f"HTTP cannot listen on 127.0.0.1:{first.port}: Address"
        ):
            await _http(port=first.port).__aenter__()


async def test_an_idle_connection_blocks_nothing() -> None:
    """A connection without a request delays neither other probes nor the stop."""
    async with asyncio.timeout(10):
        async with _http() as http:
            with socket.create_connection(("127.0.0.1", http.port)):
                assert (await _get(http.port, "/livez"))[0] == 200


async def test_readyz_follows_the_server(publish: Publish, serve: Serve) -> None:
    """Ready with a model, not ready while draining, always live."""
    publish()
    async with serve() as server:
        assert server.http is not None
        before = [(await _get(server.http.port, path))[0] for path in ("/livez", "/readyz")]
        server.models.drain()
        after = [(await _get(server.http.port, path))[0] for path in ("/livez", "/readyz")]

    assert (before, after) == ([200, 200], [200, 503])


async def test_the_metrics_of_a_request_are_scraped(publish: Publish, serve: Serve) -> None:
    """A valid and an invalid image are counted under the names that dashboards query."""
    publish()
    async with serve() as server:
        async with AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
            await client.classify_all([b"P5 1 1 255 0", b"no image"], model="colours")
        assert server.http is not None
        _, text = await _get(server.http.port, "/metrics")

    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    served = (("model", "colours"), ("version", "1"))
    method = ("method", "/lenserve.v1.Classifier/Classify")
    assert samples["lenserve_requests_total", ("code", "OK"), method] == 1
    assert samples["lenserve_request_duration_seconds_count", method] == 1
    assert samples["lenserve_images_total", served[0], ("outcome", "OK"), served[1]] == 1
    assert samples["lenserve_images_total", served[0], ("outcome", "UNDECODABLE_IMAGE"), served[1]] == 1
    assert samples["lenserve_batch_size_count", *served] == 1
    assert samples["lenserve_pending_images",] == 0
    assert samples["lenserve_ready",] == 1
