"""CPU, batch sizes and stage times from two readings of metrics."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.bench.server_facts import Sample, facts_between, read_metrics
from serving.errors import UsageError


def _sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def test_workers_use_cores_too() -> None:
    """A supervisor shows its own CPU time and that of each worker."""
    worker = "lenserve_worker_process_cpu_seconds_total"
    before = {_sample("process_cpu_seconds_total"): 1.0, _sample(worker, worker="1"): 2.0}
    after = {
        _sample("process_cpu_seconds_total"): 1.5,
        _sample(worker, worker="1"): 5.0,
        _sample(worker, worker="2"): 0.5,
    }
    assert facts_between(before, after, model="digits", duration_s=2.0).cores == 2.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n", "the answer has HTTP status 404"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "the answer has HTTP status 503"),
        (b"\0\0\x12\4\0\0\0\0\0", "the answer is not HTTP/1.1"),
        (b"", "Remote end closed connection without response"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nlenserve", "the answer ends too early"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "invalid metric name:<html>"),
    ],
)
def test_a_port_without_metrics_is_one_line(answer: bytes, reason: str) -> None:
    """Such as one of gRPC, or of another program: the reason, and which port has them."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/metrics"
        answered = threads.submit(_answer, listening, answer)
        with pytest.raises(UsageError) as refused:
            read_metrics(url)
        answered.result()
    assert str(refused.value) == (
        f"--metrics-url {url} cannot be read: {reason}; use http://HOST:PORT/metrics with the --http-port of "
        "a running server, 8002 by default"
    )


def _answer(listening: socket.socket, answer: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(answer)
