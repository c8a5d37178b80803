"""Kubeflow Trainer sees how far a run is: over HTTPS, with a token that is renewed."""

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.training.run.test_loggers import RECORD
from training.run.loggers import open_loggers

JOB = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/lenserve/trainjobs/digits/status"


class Trainer:
    """What the controller's server was sent, and whether it answers."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, dict[str, Any]]] = []  # path, token, status
        self.status = 200


@pytest.fixture
def trainer(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """A server with the controller's interface, and the variables that name it."""
    found = Trainer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.posts.append((self.path, self.headers["Authorization"], body["trainerStatus"]))
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "token").write_text("first\n")
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"https://127.0.0.1:{server.server_port}{JOB}")
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(certificates / "ca.pem"))
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
        yield found
        server.shutdown()


def no_warning(text: str) -> None:
    """No run is expected to warn."""
    raise AssertionError(text)


def test_progress_and_scores_arrive(trainer: Trainer, tmp_path: Path) -> None:
    """A quarter done, the time left, then all of it; metrics are texts; the token is read each time."""
    settings = {"training.epochs": 10, "training.head_epochs": 2}
    with open_loggers((), tmp_path, run="digits", settings=settings, warn=no_warning) as (logger,):
        logger.epoch(RECORD)
        (tmp_path / "token").write_text("second\n")
        logger.epoch(replace(RECORD, epoch=4))  # too soon after the last
        logger.result({"accuracy": 0.5})
    (_, first, epoch), (path, second, result) = trainer.posts
    assert (path, first, second) == (JOB, "Bearer first", "Bearer second")
    assert (epoch["progressPercentage"], epoch["estimatedRemainingSeconds"]) == (25, 18)
    assert {"name": "validation_loss", "value": "0.25"} in epoch["metrics"]
    assert (result["progressPercentage"], result["metrics"]) == (
        100,
        [{"name": "test_accuracy", "value": "0.5"}],
    )
    assert datetime.fromisoformat(result["lastUpdatedTime"]).tzinfo is not None


def test_a_controller_that_fails_stops_nothing(trainer: Trainer, tmp_path: Path) -> None:
    """One warning."""
    trainer.status = 503
    warnings: list[str] = []
    with open_loggers(
        (), tmp_path, run="digits", settings={"training.epochs": 4}, warn=warnings.append
    ) as loggers:
        for logger in loggers:
            logger.epoch(RECORD)
    assert warnings[0].startswith("kubeflow failed")
    assert "503" in warnings[0]


def test_a_run_elsewhere_reports_to_nobody(tmp_path: Path) -> None:
    """Without the variables there is no logger."""
    with open_loggers((), tmp_path, run="digits", settings={}, warn=no_warning) as loggers:
        assert loggers == ()
