"""Finds the knee, and advises how to reach a p99 limit. Pure: points in, sentences out."""

from collections.abc import Iterator, Sequence

from serving.bench.plan import ClosedLoop, OpenLoop
from serving.bench.points import UNSENT, Point
from serving.bench.server_facts import ServerFacts

_BUSY = 0.85  # of a core: a client above this measures itself
_MOST_FAILED = 0.001  # tolerated fraction of failed requests at a load within the limit
_LATE = 0.25  # fraction of p99: above this, send delays dominate the measurement

# Advice for the stage that takes most of a request's time.
_REMEDIES = {
    "decode": "let clients send smaller images, or give the server more cores and decode threads",
    "queue": "the network is the bottleneck: use more workers, more engine threads, or a cheaper precision",
    "infer": "use a cheaper precision, more engine threads, or a smaller --max-batch-size for full batches",
    "transport": "use more workers, or send more images in each request",
}


def find_knee(points: Sequence[Point]) -> Point | None:
    """Return the point of greatest power, throughput divided by mean latency (Kleinrock 1979).

    Below the knee, a little more latency buys much throughput; above it, much more latency buys little.
    Closed and open loops are not comparable, so only the kind with more points is considered.
    """
    closed = [point for point in points if isinstance(point.loop, ClosedLoop) and point.latencies.count]
    opened = [point for point in points if isinstance(point.loop, OpenLoop) and point.latencies.count]
    kind = closed if len(closed) >= len(opened) else opened
    return max(kind, key=_power, default=None)


def holding(points: Sequence[Point], p99_s: float) -> Point | None:
    """Return the point of highest throughput with p99 within the limit and at most 0.1 % failures."""
    held = [
        point
        for point in points
        if point.latencies.count
        and point.latencies.quantile_s(0.99) <= p99_s
        and point.failed <= _MOST_FAILED
    ]
    return max(held, key=lambda point: point.requests_per_s, default=None)


def advise(points: Sequence[Point], p99_s: float | None = None) -> list[str]:
    """Return sentences for the operator, most important first."""
    if not any(point.latencies.count for point in points):
        return ["No request succeeded, so there are no latencies to report."]
    return [
        *_about_client(points),
        *_about_limit(points, p99_s),
        *_about_knee(points),
        *_about_server(points),
    ]


def _about_limit(points: Sequence[Point], p99_s: float | None) -> Iterator[str]:
    if p99_s is None:
        return
    limit = f"{p99_s * 1000:g} ms"
    best = holding(points, p99_s)
    if best is not None:
        p99_ms = best.latencies.quantile_s(0.99) * 1000
        yield (
            f"p99 stays within {limit} up to {best.loop}: {best.requests_per_s:,.0f} requests/s "
            f"at p99 {p99_ms:.3g} ms."
        )
        return
    fastest = min(
        (point for point in points if point.latencies.count),
        key=lambda point: point.latencies.quantile_s(0.99),
    )
    p99_ms = fastest.latencies.quantile_s(0.99) * 1000
    lost = f", and {fastest.failed:.1%} failed" if fastest.failed > _MOST_FAILED else ""
    yield f"p99 was never within {limit}: the lowest was {p99_ms:.3g} ms at {fastest.loop}{lost}."


def _about_knee(points: Sequence[Point]) -> Iterator[str]:
    knee = find_knee(points)
    if knee is None or len(points) < 3:  # noqa: PLR2004 - a knee needs three points
        return
    yield (
        f"The knee is at {knee.loop}: {knee.requests_per_s:,.0f} requests/s at p50 "
        f"{knee.latencies.quantile_s(0.5) * 1000:.3g} ms. Beyond it, latency grows faster than throughput."
    )


def _about_client(points: Sequence[Point]) -> Iterator[str]:
    busiest = max(points, key=lambda point: point.busiest_client)
    if busiest.busiest_client > _BUSY:
        yield (
            f"A client process used {busiest.busiest_client:.0%} of a core at {busiest.loop}: the server may "
            f"be faster than measured. Repeat with more --processes, or from another machine."
        )
    late = [point for point in points if point.send_delay_p99_s > _LATE * point.latencies.quantile_s(0.99)]
    if late:
        worst = max(late, key=lambda point: point.send_delay_p99_s)
        yield (
            f"Requests were sent up to {worst.send_delay_p99_s * 1000:.3g} ms late (p99) at {worst.loop}; "
            f"latencies include that. Repeat with more --processes."
        )
    if unsent := sum(point.outcomes[UNSENT] for point in points):
        yield f"{unsent:,} requests were not sent because too many were unanswered."


def _about_server(points: Sequence[Point]) -> Iterator[str]:
    measured = [(point, point.server) for point in points if point.server and point.latencies.count]
    if not measured:
        return
    best, facts = max(measured, key=lambda each: each[0].requests_per_s)
    cpu_ms = facts.cores / best.requests_per_s * 1000
    yield (
        f"At {best.loop} the server used {facts.cores:.2g} cores, {cpu_ms:.3g} CPU-ms per request, "
        f"in batches of {facts.batch_images:.1f} images on average."
    )
    parts = _parts(best.latencies.mean_s, facts)
    largest = max(parts, key=lambda stage: parts[stage])
    shares = ", ".join(f"{stage} {seconds * 1000:.3g}" for stage, seconds in parts.items())
    yield f"Mean latency {best.latencies.mean_s * 1000:.3g} ms: {shares}. To improve: {_REMEDIES[largest]}."


def _parts(mean_s: float, facts: ServerFacts) -> dict[str, float]:
    """Split a request's mean time into stages; "transport" is the rest."""
    parts = {stage: min(seconds, mean_s) for stage, seconds in facts.stages_s.items() if stage in _REMEDIES}
    return {**parts, "transport": max(0.0, mean_s - sum(parts.values()))}


def _power(point: Point) -> float:
    return point.requests_per_s / point.latencies.mean_s
