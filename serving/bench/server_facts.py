"""CPU use, batch sizes and stage times over a period, from two scrapes of the server's metrics."""

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import BadStatusLine, HTTPException, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from serving.client.address import is_loopback
from serving.errors import UsageError

_TIMEOUT_S = 5
Sample = tuple[str, frozenset[tuple[str, str]]]  # name, labels


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Means over the measured period."""

    cores: float  # CPU time divided by wall time
    batch_images: float  # images per run of the network; 0 if none ran
    stages_s: Mapping[str, float]  # decode, queue, infer, ... -> mean time

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def read_metrics(url: str) -> dict[Sample, float]:
    """Read all samples of a /metrics page.

    Raises:
        UsageError: the page cannot be read.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(
            f"--metrics-url {url} is not an http:// or https:// URL such as http://127.0.0.1:8002/metrics"
        )
    try:
        with _opener(url).open(url, timeout=_TIMEOUT_S) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except (OSError, ValueError, HTTPException) as error:
        raise UsageError(
            f"--metrics-url {url} cannot be read: {_why_unread(error)}; use http://HOST:PORT/metrics with "
            "the --http-port of a running server, 8002 by default"
        ) from error
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def _why_unread(error: OSError | ValueError | HTTPException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it is also the answer
        return f"the answer has HTTP status {error.code}"
    if isinstance(error, BadStatusLine) and not isinstance(error, OSError):
        return "the answer is not HTTP/1.1"
    if isinstance(error, IncompleteRead):
        return "the answer ends too early"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error  # without its brackets
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _opener(url: str) -> urllib.request.OpenerDirector:
    # The environment's http_proxy is another machine: it cannot reach ports of this one.
    is_local = is_loopback(f"{urlsplit(url).hostname}:0")
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local else []))


def facts_between(
    before: Mapping[Sample, float], after: Mapping[Sample, float], *, model: str, duration_s: float
) -> ServerFacts:
    """Compare two scrapes for one model. Other models affect only `cores`."""
    moved = {sample: value - before.get(sample, 0.0) for sample, value in after.items()}

    def total(name: str, **labels: str) -> float:
        return sum(
            value
            for (sample_name, sample_labels), value in moved.items()
            if sample_name == name and labels.items() <= dict(sample_labels).items()
        )

    stage_name = "lenserve_stage_duration_seconds"
    stages = sorted({dict(labels)["stage"] for name, labels in moved if name == f"{stage_name}_sum"})
    means = {
        stage: total(f"{stage_name}_sum", model=model, stage=stage) / count
        for stage in stages
        if (count := total(f"{stage_name}_count", model=model, stage=stage))
    }
    batches = total("lenserve_batch_size_count", model=model)
    images = total("lenserve_batch_size_sum", model=model)
    cpu_s = total("process_cpu_seconds_total") + total("lenserve_worker_process_cpu_seconds_total")
    cores = cpu_s / duration_s
    return ServerFacts(cores, images / batches if batches else 0.0, means)
