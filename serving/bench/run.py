"""Runs a whole benchmark: prepares requests, applies every load, shows progress on stderr."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from serving.bench.plan import Loop, Plan
from serving.bench.points import Point, join
from serving.bench.server_facts import facts_between, read_metrics
from serving.bench.target import prepare
from serving.bench.workers import Workers, start_workers


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The model version that answered, and every measured point."""

    model: str
    version: int
    points: tuple[Point, ...]


def run_plan(plan: Plan, console: Console) -> BenchReport:
    """Measure point by point.

    Raises:
        LenserveError: the server does not answer, the model is unknown, or an image or the metrics cannot
            be read.
    """
    target, answer = prepare(plan.server, plan.model, plan.images, timeout_s=plan.timeout_s, token=plan.token)
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with start_workers(plan.processes, target) as workers, Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=len(plan.loops) * plan.duration_s, last="")
        points: list[Point] = []
        for loop in plan.loops:
            progress.update(task, description=str(loop))
            done_s = len(points) * plan.duration_s
            show = partial(_show, progress, task, done_s, plan.duration_s)
            points.append(_measure(plan, loop, answer.model, workers, show))
            progress.update(task, last=f"{points[-1].requests_per_s:,.0f}/s")
    return BenchReport(answer.model, answer.version, tuple(points))


def _measure(plan: Plan, loop: Loop, model: str, workers: Workers, show: Callable[[float], None]) -> Point:
    before = read_metrics(plan.metrics_url) if plan.metrics_url else {}
    started_s = time.monotonic()
    workers.start(loop, warm_up_s=plan.warm_up_s, window_s=plan.window_s)
    results = workers.results(lambda: show(time.monotonic() - started_s))
    facts = None
    if plan.metrics_url:
        passed_s = time.monotonic() - started_s
        facts = facts_between(before, read_metrics(plan.metrics_url), model=model, duration_s=passed_s)
    return join(loop, plan.window_s, results, facts)


def _show(progress: Progress, task: TaskID, before_s: float, duration_s: float, passed_s: float) -> None:
    progress.update(task, completed=before_s + min(passed_s, duration_s))
