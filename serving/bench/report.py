"""The results as a table, a picture and a JSON object."""

from typing import Any

from rich.table import Table

from serving.bench.advice import advise, find_knee
from serving.bench.chart import draw
from serving.bench.points import QUANTILES, Point
from serving.bench.run import BenchReport


def to_table(report: BenchReport) -> Table:
    """Return a table with one row per load."""
    table = Table("load", "good/s", *(f"p{100 * each:g} ms" for each in QUANTILES), "errors", box=None)
    for column in table.columns[1:-1]:
        column.justify = "right"
    knee = find_knee(report.points)
    for point in report.points:
        load = f"{point.loop}{'  <- knee' if point is knee else ''}"
        table.add_row(load, f"{point.requests_per_s:,.0f}", *_times(point), _errors(point))
    return table


def to_json(report: BenchReport, server: str, p99_s: float | None) -> dict[str, Any]:
    """Return all measurements and advice as JSON values; times in milliseconds."""
    knee = find_knee(report.points)
    return {
        "server": server,
        "model": report.model,
        "version": report.version,
        "points": [point.to_json() for point in report.points],
        "knee": knee.to_json() if knee else None,
        "advice": advise(report.points, p99_s),
    }


def draw_report(report: BenchReport, p99_s: float | None) -> str:
    """Return an SVG document."""
    return draw(report.points, title=f"{report.model}, version {report.version}", p99_s=p99_s)


def _times(point: Point) -> list[str]:
    if not point.latencies.count:
        return ["-"] * len(QUANTILES)
    return [f"{point.latencies.quantile_s(each) * 1000:.3g}" for each in QUANTILES]


def _errors(point: Point) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in point.errors.items())
