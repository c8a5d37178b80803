"""Exports the state of every version and the readiness of the server as metrics."""

from collections.abc import Iterable

from serving.metrics.recorder import Metrics
from serving.models.versions import VersionStatus


class StateMetrics:
    """Sets the metrics of current states and removes those of past states."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: set[tuple[str, str, str]] = set()  # labels of metrics.version_state

    def show(self, statuses: Iterable[VersionStatus], *, ready: bool) -> None:
        """Replace the exported states."""
        shown = {(status.model, str(status.version), str(status.state)) for status in statuses}
        for labels in shown:
            self._metrics.version_state.labels(*labels).set(1)
        for labels in self._shown - shown:  # not clear(): a concurrent scrape would see no states
            self._metrics.version_state.remove(*labels)
        self._shown = shown
        self._metrics.ready.labels().set(ready)
