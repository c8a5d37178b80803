"""The result of one load: counts and latencies, summed over all workers. Pure values."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from serving.bench.latencies import Latencies
from serving.bench.plan import ClosedLoop, Loop, OpenLoop
from serving.bench.server_facts import ServerFacts

OK = "OK"
UNSENT = "UNSENT"  # status of requests that the client did not send: too many were unanswered


@dataclass(slots=True)
class WorkerResult:
    """Outcomes of one worker in the measured window."""

    latencies: Latencies = field(default_factory=Latencies)  # of successful requests
    outcomes: Counter[str] = field(default_factory=Counter)  # status code name -> requests
    send_delays: Latencies = field(default_factory=Latencies)  # open loop: from the due time to the sending
    busy: float = 0.0  # CPU time divided by wall time; 1 is one core

    def count(self, outcome: str, latency_s: float) -> None:
        """Count one finished request."""
        self.outcomes[outcome] += 1
        if outcome == OK:
            self.latencies.add(latency_s)


@dataclass(frozen=True, slots=True)
class Point:
    """One load and its result."""

    loop: Loop
    window_s: float
    latencies: Latencies
    outcomes: Counter[str]
    send_delay_p99_s: float
    busiest_client: float  # 0..1: CPU time of the busiest worker divided by wall time
    server: ServerFacts | None = None  # None without --metrics-url

    @property
    def requests_per_s(self) -> float:
        """Successful requests per second."""
        return self.outcomes[OK] / self.window_s

    @property
    def errors(self) -> dict[str, int]:
        """Status code name -> requests, most frequent first."""
        return {code: count for code, count in self.outcomes.most_common() if code != OK}

    @property
    def failed(self) -> float:
        """Fraction 0..1 of requests that failed."""
        total = self.outcomes.total()
        return 1 - self.outcomes[OK] / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values. Times are in milliseconds, and missing if no request succeeded."""
        loop = self.loop
        times = {f"p{100 * each:g}_ms": self.latencies.quantile_s(each) * 1000 for each in QUANTILES}
        return {
            "mode": "closed" if isinstance(loop, ClosedLoop) else "open",
            "concurrency": loop.concurrency if isinstance(loop, ClosedLoop) else None,
            "offered_per_s": loop.rate_per_s if isinstance(loop, OpenLoop) else None,
            "requests_per_s": self.requests_per_s,
            "requests": self.outcomes.total(),
            **({"mean_ms": self.latencies.mean_s * 1000, **times} if self.latencies.count else {}),
            "errors": self.errors,
            "busiest_client": self.busiest_client,
            "server": self.server.to_json() if self.server else None,
        }


QUANTILES = (0.5, 0.9, 0.99, 0.999)


def join(
    loop: Loop, window_s: float, results: Iterable[WorkerResult], server: ServerFacts | None = None
) -> Point:
    """Sum the results of all workers."""
    latencies, delays, outcomes, busiest = Latencies(), Latencies(), Counter[str](), 0.0
    for result in results:
        latencies.merge(result.latencies)
        delays.merge(result.send_delays)
        outcomes.update(result.outcomes)
        busiest = max(busiest, result.busy)
    delay_p99_s = delays.quantile_s(0.99) if delays.count else 0.0
    return Point(loop, window_s, latencies, outcomes, delay_p99_s, busiest, server)
