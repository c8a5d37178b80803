"""The HTTP port for operators: probes and metrics."""

import asyncio
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from serving.admin.http_server import HttpServer
from serving.client.client import AsyncClient
from serving.errors import AddressUnavailable
from serving.transports.http.limits import Limits
from tests.colours import Publish
from tests.servers import Serve


def _fetch(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def _get(port: int, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(_fetch, port, path)


def _fail_on_loop(port: int, path: str) -> str:
    """Block the event loop until a probe fails; returns its body."""
    limit_s = time.monotonic() + 10
    while time.monotonic() < limit_s:
        code, text = _fetch(port, path)
        if code == 503:
            return text
    raise TimeoutError(f"{path} does not fail")


def _http(*, port: int = 0, why_not_live: str = "", why_not_ready: str = "") -> HttpServer:
    registry = CollectorRegistry()
    Counter("seen", "Things seen", registry=registry).inc(3)
    return HttpServer(
        host="127.0.0.1",
        port=port,
        registry=registry,
        why_not_live=lambda: why_not_live,
        why_not_ready=lambda: why_not_ready,
    )


@pytest.mark.parametrize(
    ("why_not_live", "why_not_ready", "answers"),
    [
        ("", "", [(200, "ok\n"), (200, "ok\n")]),
        ("", "loading", [(200, "ok\n"), (503, "loading\n")]),
        ("broken", "worker 2 is dead", [(503, "broken\n"), (503, "worker 2 is dead\n")]),
    ],
)
async def test_probes_answer_200_or_503_and_why(
    why_not_live: str, why_not_ready: str, answers: list[tuple[int, str]]
) -> None:
    """Kubernetes reads only the status code, people the rest."""
    async with _http(why_not_live=why_not_live, why_not_ready=why_not_ready) as http:
        assert [await _get(http.port, path) for path in ("/livez", "/readyz")] == answers


async def test_an_event_loop_that_hangs_is_neither_live_nor_ready(publish: Publish, serve: Serve) -> None:
    """The probes have their own thread, but answer for the event loop that serves calls."""
    publish()
    async with serve(hung_after_s=0.2) as server:
        assert server.http is not None
        port = server.http.port

        assert [(await _get(port, path))[0] for path in ("/livez", "/readyz")] == [200, 200]
        hung = [_fail_on_loop(port, path) for path in ("/livez", "/readyz")]  # the loop waits
        async with asyncio.timeout(10):
            for path in ("/livez", "/readyz"):
                while (await _get(port, path))[0] != 200:
                    pass
        _, metrics = await _get(port, "/metrics")

    assert all(text.startswith("the event loop has not turned for 0.") for text in hung), hung
    (lag_s,) = (
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "lenserve_event_loop_lag_seconds"
    )
    assert lag_s > 0.2


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


# Hostile clients.


@pytest.mark.parametrize("sent", [b"", b"GET /li", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_a_silent_client_is_disconnected(sent: bytes) -> None:
    """Also one that keeps its connection after an answer."""
    limits = Limits(head_s=0.1, keep_alive_s=0.1, check_interval_s=0.02)
    async with asyncio.timeout(10), _limited(limits) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(sent)
        await reader.read()
        writer.close()


async def test_a_head_that_arrives_byte_by_byte_is_given_up() -> None:
    """Bytes do not extend the time for it."""
    async with asyncio.timeout(10), _limited(Limits(head_s=0.1, check_interval_s=0.02)) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        closed = asyncio.create_task(reader.read())
        while not closed.done():
            writer.write(b"a")
            await asyncio.wait([closed], timeout=0.01)
        writer.close()


async def test_a_probe_gets_through_however_many_connections_are_open() -> None:
    """The oldest connections are closed for it."""
    async with asyncio.timeout(10), _limited(Limits(), max_connections=4) as http:
        opened = [await asyncio.open_connection("127.0.0.1", http.port) for _ in range(12)]
        assert (await _get(http.port, "/livez"))[0] == 200
        for reader, _ in opened[:8]:
            with suppress(ConnectionError):
                assert await reader.read() == b""
        for _, writer in opened:
            writer.close()


async def test_a_request_with_strange_headers_is_answered() -> None:
    """prometheus_client decodes them as UTF-8. HEAD has no body."""
    async with asyncio.timeout(10), _http() as http:
        for first in (b"GET /metrics", b"HEAD /livez", b"HEAD /metrics"):
            reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
            writer.write(first + b" HTTP/1.1\r\nhost: x\r\naccept: \xff\r\nconnection: close\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert (b"\r\n\r\n" in answer[:-4]) == first.startswith(b"GET")
            writer.close()


def _limited(limits: Limits, *, max_connections: int = 256) -> HttpServer:
    return HttpServer(
        host="127.0.0.1",
        port=0,
        registry=CollectorRegistry(),
        why_not_live=lambda: "",
        why_not_ready=lambda: "",
        limits=limits,
        max_connections=max_connections,
    )
