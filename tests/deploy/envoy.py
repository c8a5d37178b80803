"""Envoy in front of several servers, as a load balancer that knows connections and no calls."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

UP_WITHIN_S = 20


@contextmanager
def balancing(folder: Path, servers: Sequence[int]) -> Iterator[str]:
    """Distribute connections over those of these ports that accept them; yield the address."""
    program = shutil.which("envoy")
    if program is None:
        pytest.skip("no envoy on the PATH: `make check-deploy` installs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    (folder / "envoy.json").write_text(json.dumps(_configuration(port, servers)))
    command = [program, "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error"]
    with (
        (folder / "envoy.log").open("w") as log,
        subprocess.Popen([*command, "--use-dynamic-base-id"], stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_up(process, port, folder / "envoy.log")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _configuration(port: int, servers: Sequence[int]) -> dict[str, object]:
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "clients",
        "cluster": "lenserve",
    }
    health = {
        "timeout": "0.2s",
        "interval": "0.1s",
        "no_traffic_interval": "0.1s",
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
        "tcp_health_check": {},
    }
    endpoints = [{"endpoint": {"address": _address(each)}} for each in servers]
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": _address(port),
                    "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
                }
            ],
            "clusters": [
                {
                    "name": "lenserve",
                    "type": "STATIC",
                    "lb_policy": "ROUND_ROBIN",
                    "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
                    "health_checks": [health],
                    "load_assignment": {
                        "cluster_name": "lenserve",
                        "endpoints": [{"lb_endpoints": endpoints}],
                    },
                }
            ],
        }
    }


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    late_s = time.monotonic() + UP_WITHIN_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < late_s, log.read_text()
            time.sleep(0.02)  # nothing tells when a proxy listens
        else:
            return
