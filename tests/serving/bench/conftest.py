"""Points of an ideal queue."""

from collections import Counter

import pytest

from serving.bench.latencies import Latencies
from serving.bench.plan import Loop
from serving.bench.points import OK, Point
from serving.bench.server_facts import ServerFacts
from tests.serving.bench.make_point import MakePoint


@pytest.fixture(scope="session")
def make_point() -> MakePoint:
    """A point of one second in which every request took equally long."""

    def make(
        loop: Loop,
        *,
        rate: int,
        latency_s: float,
        errors: int = 0,
        busy: float = 0.1,
        server: ServerFacts | None = None,
    ) -> Point:
        latencies = Latencies()
        for _ in range(rate):
            latencies.add(latency_s)
        outcomes = Counter([OK] * rate + ["RESOURCE_EXHAUSTED"] * errors)
        return Point(loop, 1.0, latencies, outcomes, 0.0, busy, server)

    return make
