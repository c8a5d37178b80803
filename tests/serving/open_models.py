"""Opens `Models` on the repository of a test."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from serving.models.readiness import Readiness
from serving.models.registry import KEEP_METRICS_S, PATIENCE_S, STUCK_S, Models


class OpenModels(Protocol):
    """Opens `Models` on the test's repository. By default it is read once, before the test."""

    def __call__(
        self,
        *,
        scanned: bool = True,
        max_batch_size: int = 4,
        warm_sizes: tuple[int, ...] = (1,),
        poll_interval_s: float = 3600,
        parallel_loads: int = 1,
        keep_metrics_s: float = KEEP_METRICS_S,
        patience_s: float = PATIENCE_S,
        stuck_s: float = STUCK_S,
        readiness: Readiness | None = None,
        proof_pause_s: float = 0.0,
        hung_run_s: float = 60.0,
        keep_warm_s: float = 0.0,
        look_interval_s: float | None = None,
        **options: Any,
    ) -> AbstractAsyncContextManager[Models]:
        """Further options are those of `VersionLoader`."""
