"""Reports the progress of a run to Kubeflow Trainer, which shows it in the status of the TrainJob.

Trainer 2.2 sets the three variables, if its feature TrainJobStatus is on. The format is that of
docs/user-guides/trainjob-progress.md in kubeflow/trainer. Independent of torch.
"""

import json
import os
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.learning.history import EpochRecord

URL_VARIABLE = "KUBEFLOW_TRAINER_SERVER_URL"
TOKEN_VARIABLE = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - a variable's name: its value is a path
CA_VARIABLE = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
MIN_INTERVAL_S = 5.0  # each report is a write to the cluster's API server
_TIMEOUT_S = 5.0
_MAX_CHARACTERS = 64  # of a metric's name and value


class TrainJobStatus:
    """Posts percentage, time left and metrics after an epoch, and the scores at the end.

    Args:
        url: HTTPS address of this job's status.
        ca_file: PEM file of the authority of its certificate.
        token_file: file of the bearer token. It is read each time, since Kubernetes renews it.
        epochs: of the whole run, at most; 0: unknown.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path,
        token_file: Path,
        epochs: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._token_file = token_file
        self._tls = ssl.create_default_context(cafile=ca_file)
        self._epochs = epochs
        self._clock = clock
        self._next_s = -float("inf")

    def epoch(self, record: EpochRecord) -> None:
        """Report an epoch, unless the last report is less than 5 s ago."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        status: dict[str, Any] = {}
        if self._epochs:
            left = max(self._epochs - record.epoch, 0)
            # 100 is for the published version: evaluation and export follow the last epoch.
            status["progressPercentage"] = min(99, 100 * record.epoch // self._epochs)
            status["estimatedRemainingSeconds"] = round(left * record.seconds)
        metrics = {
            "epoch": record.epoch,
            "train_loss": record.train_loss,
            "validation_loss": record.validation_loss,
            "validation_accuracy": record.validation_accuracy,
        }
        self._post(status, metrics)
        self._next_s = now_s + MIN_INTERVAL_S

    def result(self, metrics: Mapping[str, int | float]) -> None:
        """Report the end and the scores on the test split."""
        done = {"progressPercentage": 100, "estimatedRemainingSeconds": 0}
        self._post(done, {f"test_{name}": value for name, value in metrics.items()})

    def _post(self, status: dict[str, Any], metrics: Mapping[str, int | float]) -> None:
        shown = [{"name": name[:_MAX_CHARACTERS], "value": f"{value:.6g}"} for name, value in metrics.items()]
        body = {
            "trainerStatus": status | {"metrics": shown, "lastUpdatedTime": datetime.now(UTC).isoformat()}
        }
        request = urllib.request.Request(  # noqa: S310 - the address that Trainer gave
            self._url,
            data=json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token_file.read_text(encoding='utf-8').strip()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self._tls):  # noqa: S310 - as above
            pass


def is_trainjob() -> bool:
    """Whether this run is a TrainJob of Kubeflow that wants reports."""
    return all(os.environ.get(each) for each in (URL_VARIABLE, CA_VARIABLE, TOKEN_VARIABLE))


def status_of_trainjob(settings: Mapping[str, Any]) -> TrainJobStatus:
    """Return where a TrainJob reports to.

    Args:
        settings: settings of the recipe, dotted key -> value.

    Raises:
        OSError: the file of authorities cannot be read.
    """
    return TrainJobStatus(
        os.environ[URL_VARIABLE],
        ca_file=Path(os.environ[CA_VARIABLE]),
        token_file=Path(os.environ[TOKEN_VARIABLE]),
        epochs=sum(int(settings.get(f"training.{key}") or 0) for key in ("epochs", "head_epochs")),
    )
