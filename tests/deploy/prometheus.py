"""A real Prometheus that scrapes real servers and evaluates the rules of deploy/. A minute takes 1 s."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rules import shortened

SECONDS_OF_A_MINUTE = 1.0
SCRAPE_INTERVAL = "500ms"  # a rate over 5 minutes then has ten samples
UP_WITHIN_S = 30
CHANGED_WITHIN_S = 100


class Prometheus:
    """A running Prometheus: what it scrapes, and what it answers."""

    def __init__(self, address: str, targets: Path) -> None:
        self._address = address
        self._targets = targets

    def scrape(self, *addresses: str) -> None:
        """Scrape these servers from now on, as the job lenserve, and no others."""
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": list(addresses)}]))
        new.rename(self._targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression at this moment."""
        url = f"http://{self._address}/api/v1/query?query={urllib.parse.quote(expression)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {
            series["metric"]["alertname"]
            for series in self.query('ALERTS{alertstate="firing"}')
            if float(series["value"][1]) == 1
        }

    def wait_until(self, holds: Callable[[], bool], else_says: object) -> None:
        """Ask until something holds; if it never does, fail with `else_says` as it is then."""
        late_s = time.monotonic() + CHANGED_WITHIN_S
        while not holds():
            assert time.monotonic() < late_s, f"{else_says}; firing: {self.firing()}"
            time.sleep(0.1)  # Prometheus tells nobody what it has found


@contextmanager
def running_prometheus(folder: Path) -> Iterator[Prometheus]:
    """Start Prometheus without targets; skip the test where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on the PATH: Debian's package prometheus brings it")
    targets = folder / "targets.json"
    targets.write_text("[]")
    (folder / "rules.yaml").write_text(shortened(SECONDS_OF_A_MINUTE))
    config = {
        "global": {
            "scrape_interval": SCRAPE_INTERVAL,
            "scrape_timeout": SCRAPE_INTERVAL,
            "evaluation_interval": SCRAPE_INTERVAL,
        },
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "lenserve",
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": SCRAPE_INTERVAL}],
            }
        ],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.json'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--query.lookback-delta=3s",
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait_until_ready(process, address, folder / "prometheus.log")
            yield Prometheus(address, targets)
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    late_s = time.monotonic() + UP_WITHIN_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=1):
                return
        except OSError:
            assert time.monotonic() < late_s, log.read_text()
            time.sleep(0.05)  # nothing tells when it listens
