"""A real Prometheus scrapes real servers: every query gives a series, and alerts fire and clear.

`make check-deploy` sets LENSERVE_EVERY_ALERT: then every alert does that a server can be brought to. Without
it, those do that take a few seconds. tests/deploy/test_rules.py has all of them on a simulated clock.
"""

import json
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Repository, reference_of
from tests.colours import Publish, write_colours
from tests.deploy.calls import calls, stream
from tests.deploy.prometheus import Prometheus, running_prometheus
from tests.deploy.rules import DEPLOY, expressions
from tests.servers import HangLoad, ServerProcess, StartServer

EVERY_ALERT = "LENSERVE_EVERY_ALERT" in os.environ
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
# Series that exist only while something is wrong; test_rules.py and the alerts below show that they come.
ONLY_IN_TROUBLE = {"Images by error"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One for all tests, which scrape one server after the other."""
    with running_prometheus(tmp_path_factory.mktemp("prometheus")) as running:
        yield running


def queries_of_the_dashboard() -> dict[str, list[str]]:
    """Title of a panel -> its queries, with Grafana's variables filled in."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return {
        panel["title"]: [
            target["expr"].replace("$job", ".+").replace("$__rate_interval", "5s")
            for target in panel["targets"]
        ]
        for panel in panels
    }


def selectors() -> set[str]:
    """The metrics that the alerts' expressions read."""
    names = set()
    for expression in expressions().values():
        names |= set(re.findall(r"\b(?:lenserve|process)_\w+", re.sub(r"job\w*:[\w:]+", "", expression)))
    return names


def publish_with_reference(repository: Repository) -> None:
    """Publish a version that answered red, green and blue for its test images, so that it has a drift."""
    sure = np.repeat(np.eye(3, dtype=np.float32), 100, axis=0)  # (N, K)
    repository.publish(
        "colours",
        lambda folder: write_colours(folder, rotate=0, lie=False).model_copy(
            update={"reference": reference_of(sure)}
        ),
    )


def test_every_query_gives_a_series(
    repository: Repository, start_server: StartServer, prometheus: Prometheus
) -> None:
    """Recording rules, all that alerts read, and every panel, from a server with two workers and calls."""
    publish_with_reference(repository)
    server = start_server("--workers", "2")
    prometheus.scrape(server.http)
    missing: set[str] = set()

    def all_there() -> bool:
        recorded = {name for name in expressions() if ":" in name}
        panels = {
            f"{title}: {query}"
            for title, queries in queries_of_the_dashboard().items()
            if title not in ONLY_IN_TROUBLE
            for query in queries
        }
        missing.clear()
        missing.update(
            each
            for each in recorded | selectors() | panels
            if not prometheus.query(each.partition(": ")[2] or each)
        )
        return not missing

    with calls(server.grpc, images=16):
        stream(server.grpc)
        prometheus.wait_until(all_there, missing)


def _workers(server: ServerProcess) -> list[int]:
    """The process ids of the workers."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(child) for child in children.split()]


@dataclass(frozen=True)
class Lab:
    """What a scenario needs."""

    publish: Publish
    start: StartServer
    prometheus: Prometheus
    repository: Repository
    hang_load: HangLoad

    def scraped(self, *options: str) -> ServerProcess:
        """A server that Prometheus scrapes."""
        server = self.start(*options)
        self.prometheus.scrape(server.http)
        return server


@contextmanager
def no_server(lab: Lab) -> Iterator[None]:
    """Service discovery finds none, until one is there."""
    lab.prometheus.scrape()
    yield
    lab.scraped()


@contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """A server that was stopped, until there is another."""
    lab.scraped().stop()
    yield
    lab.scraped()


@contextmanager
def lame_duck(lab: Lab) -> Iterator[None]:
    """A server that was asked to stop and still serves, until it is gone."""
    lab.publish()
    server = lab.scraped("--lame-duck-s", "60")
    server.process.terminate()
    yield
    server.process.kill()
    lab.prometheus.scrape()


@contextmanager
def bad_version(lab: Lab) -> Iterator[None]:
    """A new version is refused; an hour later this is no news."""
    lab.publish()
    lab.scraped("--poll-interval-s", "0.05")
    lab.publish(lie=True)
    yield


@contextmanager
def calls_without_a_version(lab: Lab) -> Iterator[None]:
    """Calls for a model whose only version is refused end with UNAVAILABLE."""
    lab.publish()
    lab.publish("bad", lie=True)
    server = lab.scraped()
    with calls(server.grpc, "bad"):
        yield


@contextmanager
def too_many_images(lab: Lab) -> Iterator[None]:
    """Eight callers with 16 images each, where 16 may be pending."""
    lab.publish()
    server = lab.scraped("--max-pending-images", "16", "--max-images", "16", "--max-queue-delay-s", "0.02")
    with calls(server.grpc, images=16, threads=8):
        yield


@contextmanager
def deadlines_that_pass(lab: Lab) -> Iterator[None]:
    """Calls that wait longer for a batch than their deadline allows."""
    lab.publish()
    server = lab.scraped("--max-queue-delay-s", "1")
    with calls(server.grpc, timeout_s=0.1, threads=2):
        yield


@contextmanager
def slow_calls(lab: Lab) -> Iterator[None]:
    """Calls that wait a second for a fuller batch."""
    lab.publish()
    server = lab.scraped("--max-queue-delay-s", "1")
    with calls(server.grpc, threads=2):
        yield


@contextmanager
def workers_that_hang(lab: Lab) -> Iterator[None]:
    """Workers that were halted while images waited for a fuller batch."""
    lab.publish()
    server = lab.scraped("--workers", "2", "--max-queue-delay-s", "1")
    with calls(server.grpc):
        lab.prometheus.wait_until(
            lambda: bool(lab.prometheus.query("lenserve_pending_images > 0")), "nothing is pending"
        )
        for worker in _workers(server):
            os.kill(worker, signal.SIGSTOP)
        yield
        for worker in _workers(server):
            os.kill(worker, signal.SIGCONT)


@contextmanager
def endless_version(lab: Lab) -> Iterator[None]:
    """A version that never ends loading, until its server is stopped."""
    lab.publish()
    server = lab.scraped("--poll-interval-s", "0.05")
    lab.hang_load(server)
    yield
    server.process.kill()
    lab.prometheus.scrape()


@contextmanager
def lost_repository(lab: Lab) -> Iterator[None]:
    """The folder of the repository is gone, as when a mount falls away, until it is back."""
    lab.publish()
    lab.scraped("--poll-interval-s", "0.05")
    away = lab.repository.root.rename(lab.repository.root.with_name("away"))
    yield
    away.rename(lab.repository.root)


@contextmanager
def workers_that_die(lab: Lab) -> Iterator[None]:
    """Both workers are killed four times."""
    lab.publish()
    server = lab.scraped("--workers", "2")
    lab.prometheus.wait_until(
        lambda: bool(lab.prometheus.query("lenserve_worker_deaths_total == 0")), "not scraped"
    )
    for deaths in (2, 4, 6, 8):
        lab.prometheus.wait_until(lambda: len(_workers(server)) == 2, "a worker was not replaced")
        for worker in _workers(server):
            os.kill(worker, signal.SIGKILL)
        server.wait_for("worker_died", times=deaths)
    yield


@contextmanager
def only_bad_versions(lab: Lab) -> Iterator[None]:
    """A model whose only version is refused, beside a good model, until its next version."""
    lab.publish()
    lab.publish("bad", lie=True)
    lab.scraped("--poll-interval-s", "0.05")
    yield
    lab.publish("bad")


@contextmanager
def workers_that_are_replaced(lab: Lab) -> Iterator[None]:
    """A worker that is halted until the supervisor kills it."""
    lab.publish()
    server = lab.scraped("--workers", "2", "--hung-after-s", "1")
    lab.prometheus.wait_until(
        lambda: bool(lab.prometheus.query("lenserve_worker_hangs_total == 0")), "not scraped"
    )
    os.kill(_workers(server)[0], signal.SIGSTOP)
    yield


@contextmanager
def halted_event_loop(lab: Lab) -> Iterator[None]:
    """A process that was halted for two seconds, as a loop that something blocks."""
    lab.publish()
    server = lab.scraped()
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(2)  # the lag that it then has
    server.process.send_signal(signal.SIGCONT)
    yield
    server.process.kill()


@contextmanager
def black_images(lab: Lab) -> Iterator[None]:
    """Calls with black images, which the test images were not."""
    publish_with_reference(lab.repository)
    server = lab.scraped()
    with calls(server.grpc, images=16):
        yield
    server.process.kill()


@contextmanager
def no_room_for_capture(lab: Lab) -> Iterator[None]:
    """The folder of captured images became a file, until another server is there."""
    lab.publish()
    folder = lab.repository.root.parent / "captured"
    server = lab.scraped("--capture-dir", str(folder), "--capture-rate", "1")
    shutil.rmtree(folder)
    folder.write_text("")
    with calls(server.grpc):
        yield
    server.process.kill()
    lab.scraped()


@contextmanager
def restarts(lab: Lab) -> Iterator[None]:
    """A server that is started five times on one port."""
    lab.publish()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lab.prometheus.scrape(f"127.0.0.1:{port}")
    for _ in range(5):
        server = lab.start("--http-port", port)
        started = f'process_start_time_seconds{{job="lenserve",instance="127.0.0.1:{port}"}}'
        lab.prometheus.wait_until(lambda query=started: bool(lab.prometheus.query(query)), "not scraped")  # type: ignore[misc]
        server.stop()
    lab.start("--http-port", port)
    yield


@contextmanager
def too_many_connections(lab: Lab) -> Iterator[None]:
    """Three connections where one is allowed."""
    lab.publish()
    server = lab.scraped("--max-connections", "1")
    host, _, port = server.grpc.rpartition(":")
    lab.prometheus.wait_until(
        lambda: bool(lab.prometheus.query("lenserve_refused_connections_total == 0")), "not scraped"
    )
    for _ in range(3):
        socket.create_connection((host, int(port))).close()
    held = [socket.create_connection((host, int(port))) for _ in range(3)]
    yield
    for each in held:
        each.close()


@contextmanager
def open_files(lab: Lab) -> Iterator[None]:
    """Connections that take most of the files that the server may open."""
    lab.publish()
    server = lab.scraped()
    host, _, port = server.grpc.rpartition(":")
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (80, 80))
    with ExitStack() as held:
        for _ in range(52):
            held.enter_context(socket.create_connection((host, int(port))))
        yield


Scenario = Callable[[Lab], AbstractContextManager[None]]

QUICK: dict[str, Scenario] = {"LenserveDown": stopped}
LONG: dict[str, Scenario] = {
    "LenserveNotReady": lame_duck,
    "LenserveAbsent": no_server,
    "LenserveErrors": calls_without_a_version,
    "LenserveRefusesCalls": too_many_images,
    "LenserveLate": deadlines_that_pass,
    "LenserveSlow": slow_calls,
    "LenserveStuck": workers_that_hang,
    "LenserveVersionRefused": bad_version,
    "LenserveModelNotServed": only_bad_versions,
    "LenserveVersionLoadsLong": endless_version,
    "LenserveRepositoryProblems": lost_repository,
    "LenserveWorkersDie": workers_that_die,
    "LenserveWorkersHang": workers_that_are_replaced,
    "LenserveEventLoopLags": halted_event_loop,
    "LenserveRestarts": restarts,
    "LenserveRefusesConnections": too_many_connections,
    "LenserveFilesRunOut": open_files,
    "LenserveDrift": black_images,
    "LenserveCaptureStopped": no_room_for_capture,
}
# No healthy CPU stops reproducing its golden examples: only test_rules.py has this one.
NOT_TO_BE_MADE = {"LenserveVersionBroken"}


@pytest.fixture
def lab(
    publish: Publish,
    start_server: StartServer,
    prometheus: Prometheus,
    repository: Repository,
    hang_load: HangLoad,
) -> Lab:
    """What scenarios need."""
    return Lab(publish, start_server, prometheus, repository, hang_load)


@pytest.mark.parametrize("alert", [*QUICK, *(LONG if EVERY_ALERT else ())])
def test_an_alert_fires_and_clears_on_a_real_server(alert: str, lab: Lab) -> None:
    """It fires because of what a server really does, and clears when that ends."""
    with (LONG | QUICK)[alert](lab):
        lab.prometheus.wait_until(lambda: alert in lab.prometheus.firing(), f"{alert} does not fire")
    lab.prometheus.wait_until(lambda: alert not in lab.prometheus.firing(), f"{alert} does not clear")


def test_every_alert_has_a_scenario() -> None:
    """A new alert comes with what makes it fire."""
    named = {name for name in expressions() if ":" not in name}
    assert set(QUICK) | set(LONG) | NOT_TO_BE_MADE == named
