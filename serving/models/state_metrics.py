"""Exports the state of every version as a metric."""

from collections.abc import Iterable

from serving.metrics.recorder import Metrics
from serving.models.versions import VersionStatus


class StateMetrics:
    """Sets the metrics of current states and removes those of past states."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: dict[str, set[tuple[str, str, str]]] = {}  # model -> labels of metrics.version_state

    def show(self, model: str, statuses: Iterable[VersionStatus]) -> None:
        """Replace the exported states of one model."""
        states = {(model, str(status.version), str(status.state)) for status in statuses}
        for labels in states:
            self._metrics.version_state.labels(*labels).set(1)
        for labels in self._shown.pop(model, set()) - states:  # last: a concurrent scrape would see no states
            self._metrics.version_state.remove(*labels)
        if states:
            self._shown[model] = states
