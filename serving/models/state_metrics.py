"""Exports the state of every version and model as metrics."""

from collections.abc import Iterable

from serving.metrics.recorder import Metrics
from serving.models.versions import Model, VersionStatus


class StateMetrics:
    """Sets the metrics of current states and removes those of past states."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: dict[str, set[tuple[str, str, str]]] = {}  # model -> labels of metrics.version_state

    def show(self, name: str, model: Model | None, statuses: Iterable[VersionStatus]) -> None:
        """Replace the exported states of one model; None: it is not known, or not any more."""
        if model is not None:
            self._metrics.model_ready.labels(name).set(model.ready)
        elif self._metrics.model_ready.find(name) is not None:
            self._metrics.model_ready.remove(name)
        states = {(name, str(status.version), str(status.state)) for status in statuses}
        for labels in states:
            self._metrics.version_state.labels(*labels).set(1)
        for labels in self._shown.pop(name, set()) - states:  # last: a concurrent scrape would see no states
            self._metrics.version_state.remove(*labels)
        if states:
            self._shown[name] = states
