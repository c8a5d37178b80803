"""Creates results of a load for tests."""

from typing import Protocol

from serving.bench.plan import Loop
from serving.bench.points import Point
from serving.bench.server_facts import ServerFacts


class MakePoint(Protocol):
    """Creates a point of one second in which all requests took equally long."""

    def __call__(
        self,
        loop: Loop,
        *,
        rate: int,
        latency_s: float,
        errors: int = 0,
        busy: float = 0.1,
        server: ServerFacts | None = None,
    ) -> Point:
        """`rate` requests succeed and `errors` are rejected."""
