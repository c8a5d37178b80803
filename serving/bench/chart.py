"""Draws latency against throughput as SVG, with the knee marked. Needs no plotting library."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from serving.bench.advice import find_knee
from serving.bench.plan import ClosedLoop, OpenLoop
from serving.bench.points import Point

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 48, 56
_LINES = (("p50", 0.5, "#1b6ca8"), ("p99", 0.99, "#c0392b"))


def draw(points: Sequence[Point], *, title: str, p99_s: float | None = None) -> str:
    """Return an SVG document.

    Args:
        points: sorted by load; points without a successful request are skipped.
        title: text above the plot.
        p99_s: limit, drawn as a line.

    Raises:
        ValueError: no request succeeded at any point.
    """
    shown = [point for point in points if point.latencies.count]
    if not shown:
        raise ValueError("no request succeeded: there is nothing to draw")
    axes = _Axes(shown, p99_s)
    knee = find_knee(shown)
    body = [*_frame(axes, title), *_limit(axes, p99_s)]
    for number, (label, fraction, colour) in enumerate(_LINES):
        body += _line(axes, shown, label, fraction, colour)
        body.append(_text(_LEFT + 12 + 60 * number, _TOP - 10, label, colour=colour))
    if knee is not None:
        body += _mark(axes, knee)
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    lines = "\n".join(body)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{lines}\n</svg>\n'


class _Axes:
    """Maps requests/s (linear) and seconds (logarithmic) to picture coordinates."""

    def __init__(self, points: Sequence[Point], p99_s: float | None) -> None:
        seconds = [point.latencies.quantile_s(fraction) for point in points for _, fraction, _ in _LINES]
        seconds += [p99_s] if p99_s else []
        self.low = 10.0 ** math.floor(math.log10(min(seconds)))
        self.high = 10.0 ** math.ceil(math.log10(max(seconds)) + 1e-9)
        self.most = _round_up(max(point.requests_per_s for point in points))

    def x(self, requests_per_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * requests_per_s / self.most

    def y(self, seconds: float) -> float:
        part = math.log(seconds / self.low) / math.log(self.high / self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * part


def _frame(axes: _Axes, title: str) -> Iterator[str]:
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    yield _text(_WIDTH / 2, 22, title, anchor="middle", size=15)
    for number in range(6):
        value = axes.most * number / 5
        yield _rule(axes.x(value), _TOP, axes.x(value), _HEIGHT - _BOTTOM)
        yield _text(axes.x(value), _HEIGHT - _BOTTOM + 18, f"{value:g}", anchor="middle")
    for exponent in range(round(math.log10(axes.low)), round(math.log10(axes.high)) + 1):
        height = axes.y(10.0**exponent)
        yield _rule(_LEFT, height, _WIDTH - _RIGHT, height)
        yield _text(_LEFT - 8, height + 4, f"{10.0 ** (exponent + 3):g} ms", anchor="end")
    yield _text(_WIDTH / 2, _HEIGHT - 14, "successful requests per second", anchor="middle")


def _line(axes: _Axes, points: Sequence[Point], label: str, fraction: float, colour: str) -> Iterator[str]:
    for kind in (ClosedLoop, OpenLoop):
        places = [
            (axes.x(point.requests_per_s), axes.y(point.latencies.quantile_s(fraction)), point)
            for point in points
            if isinstance(point.loop, kind)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        dashes = ' stroke-dasharray="5 4"' if kind is OpenLoop else ""
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        for x, y, point in places:
            tooltip = escape(f"{label} at {point.loop}: {point.latencies.quantile_s(fraction) * 1000:.3g} ms")
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{tooltip}</title></circle>'


def _limit(axes: _Axes, p99_s: float | None) -> Iterator[str]:
    if p99_s is None:
        return
    height = axes.y(p99_s)
    yield (
        f'<line x1="{_LEFT}" y1="{height:.1f}" x2="{_WIDTH - _RIGHT}" y2="{height:.1f}" stroke="#c0392b" '
        f'stroke-dasharray="2 3"/>'
    )
    yield _text(_WIDTH - _RIGHT, height - 5, f"p99 limit: {p99_s * 1000:g} ms", anchor="end")


def _mark(axes: _Axes, knee: Point) -> Iterator[str]:
    x, y = axes.x(knee.requests_per_s), axes.y(knee.latencies.quantile_s(0.5))
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" fill="none" stroke="#222" stroke-width="2"/>'
    anchor, shift = ("end", -14) if x > _WIDTH / 2 else ("start", 14)
    yield _text(x + shift, y + 22, f"knee: {knee.loop}", anchor=anchor)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}>{escape(text)}</text>"


def _round_up(value: float) -> float:
    """Round up to 1, 2, 5 or 10 times a power of ten, so that the gridlines are at round numbers."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
