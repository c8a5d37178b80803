"""Behind a real Envoy that balances connections, with TLS: connection age brings clients to new servers."""

import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from serving.client import Client
from tests.colours import SIDE, Publish
from tests.deploy.envoy import balancing
from tests.servers import ServerProcess, StartServer

CLIENTS = 12
AGE_S = 1.0
EVEN_WITHIN_S = 30
FAIR_SHARE = (0.2, 0.47)  # of three servers: round robin gives 4 of 12 connections, and ages differ by 10 %


def test_three_servers_even_out(
    publish: Publish, start_server: StartServer, certificates: Path, tmp_path: Path
) -> None:
    """One server has all clients; two more start; soon each has its share, and no call failed."""
    publish()
    ports = _free_ports(3)

    def start(port: int) -> ServerProcess:
        return start_server(
            *("--grpc-port", str(port), "--max-connection-age-s", str(AGE_S)),
            *("--tls-cert-file", str(certificates / "server.pem")),
            *("--tls-key-file", str(certificates / "server.key")),
        )

    failures: list[Exception] = []
    stopped = threading.Event()
    with balancing(tmp_path, ports) as address, ExitStack() as stack:
        servers = [start(ports[0])]
        black = np.zeros((SIDE, SIDE, 3), np.uint8)  # (H, W, C)
        with Client(address, tls_ca_file=certificates / "ca.pem") as client:
            client.classify(black, model="colours")  # tries again until Envoy has noticed the first server

        def call() -> None:
            with Client(address, attempts=1, tls_ca_file=certificates / "ca.pem") as client:
                while not stopped.wait(0.02):
                    try:
                        client.classify(black, model="colours")
                    except Exception as error:  # noqa: BLE001 - the test compares them with none
                        failures.append(error)

        clients = [threading.Thread(target=call) for _ in range(CLIENTS)]
        for each in clients:
            each.start()
            stack.callback(each.join)
        stack.callback(stopped.set)
        _wait_until(lambda: _total(servers[0], "lenserve_open_connections") >= CLIENTS)
        servers += [start(port) for port in ports[1:]]

        def even() -> bool:
            before = [_total(server, "lenserve_images_total") for server in servers]
            time.sleep(AGE_S)  # a share is that of a time
            answered = [
                _total(server, "lenserve_images_total") - was
                for server, was in zip(servers, before, strict=True)
            ]
            return all(FAIR_SHARE[0] < each / sum(answered) < FAIR_SHARE[1] for each in answered)

        _wait_until(even)
    assert not failures


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _total(server: ServerProcess, metric: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric
    )


def _wait_until(holds: Callable[[], bool]) -> None:
    late_s = time.monotonic() + EVEN_WITHIN_S
    while not holds():
        assert time.monotonic() < late_s
        time.sleep(0.05)  # counters tell nobody when they grow
