"""grpc_server_started_total and grpc_server_handled_total: our counts under the names of go-grpc-prometheus.

Flagger's and Argo Rollouts' checks of gRPC servers, and most dashboards, query these names and labels.
"""

from collections import defaultdict

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from serving.metrics.counters import CounterValue
from serving.metrics.families import GRPC_LABELS, MetricFamilies

# google.golang.org/grpc/codes spells only these two otherwise than in capitals at each word.
_CODES = {"OK": "OK", "CANCELLED": "Canceled"}


def started_calls(metrics: MetricFamilies, method: str, grpc_type: str) -> CounterValue:
    """Return the counter of calls that began.

    Args:
        metrics: where it is.
        method: /package.Service/Method.
        grpc_type: unary, server_stream or bidi_stream.
    """
    service, _, name = method.removeprefix("/").rpartition("/")
    return metrics.started.labels(grpc_type, service, name)


def handled_calls(metrics: MetricFamilies) -> Metric:
    """Return the calls that ended, computed from ours at a scrape: requests count once."""
    ended: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for (method, code), calls in metrics.requests.items():
        ended[method][code] = calls.value
    family = CounterMetricFamily(
        "grpc_server_handled",
        "Calls that ended, under the name of go-grpc-prometheus",
        labels=(*GRPC_LABELS, "grpc_code"),
    )
    for (grpc_type, service, name), _ in metrics.started.items():  # noqa: PERF102 - it is not a dict
        for code, count in ended[f"/{service}/{name}"].items():
            family.add_metric((grpc_type, service, name, _in_go(code)), count)
    return family


def _in_go(code: str) -> str:
    """Return a status name as Go's gRPC writes it: DEADLINE_EXCEEDED is DeadlineExceeded."""
    return _CODES.get(code) or code.title().replace("_", "")
