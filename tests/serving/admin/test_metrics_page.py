"""/metrics for HEAD, and for some families only, over a real server."""

import asyncio
import http.client

import pytest

from serving.client.client import AsyncClient
from tests.colours import Publish
from tests.servers import Serve


async def _ask(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content-length and body; a second request on the same connection must work."""

    def ask() -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            for _ in range(2):
                connection.request(method, path)
                answer = connection.getresponse()
                body = answer.read().decode()
        finally:
            connection.close()
        return answer.status, answer.getheader("content-length") or "", body

    return await asyncio.to_thread(ask)


async def test_head_of_metrics_has_no_body(publish: Publish, serve: Serve) -> None:
    """Health checks of load balancers and `curl --head` send it."""
    publish()
    async with serve() as server:
        assert server.http is not None
        status, length, body = await _ask(server.http.port, "/metrics", "HEAD")
        assert (status, body) == (200, "")
        assert int(length) > 1000
        for probe in ("/livez", "/readyz"):
            assert await _ask(server.http.port, probe, "HEAD") == (200, "3", "")


@pytest.mark.parametrize(
    ("query", "samples"),
    [
        ("name[]=lenserve_requests_total", {"lenserve_requests_total"}),
        ("name%5B%5D=lenserve_requests", {"lenserve_requests_total"}),
        (
            "name[]=lenserve_request_duration_seconds_count&name[]=process_open_fds",
            {"lenserve_request_duration_seconds_count", "process_open_fds"},
        ),
        (
            "name[]=lenserve_batch_size",
            {f"lenserve_batch_size_{each}" for each in ("bucket", "count", "sum")},
        ),
        ("name[]=unknown", set()),
    ],
)
async def test_names_choose_families_and_samples(
    publish: Publish, serve: Serve, query: str, samples: set[str]
) -> None:
    """As exporters do that follow the clients of Prometheus."""
    publish()
    async with serve() as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
        assert server.http is not None
        await client.classify(b"P5 1 1 255 \0", model="colours")
        status, _, page = await _ask(server.http.port, f"/metrics?{query}")

    names = {line.split("{")[0].split()[0] for line in page.splitlines() if not line.startswith("#")}
    assert status == 200
    assert {name for name in names if not name.endswith("_created")} == samples
