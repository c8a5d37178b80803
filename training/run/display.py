"""Shows a run on the terminal (stderr)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from serving.bundle import Estimate
from training.champion.result import Challenge
from training.data.checks import DataReport
from training.evaluation.gates import Check
from training.few_shot.curve import CurvePoint
from training.learning.history import EpochRecord
from training.recipe import Recipe

_MAX_SHOWN_LABELS = 12


class Display:
    """A console, with a progress bar during training."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._first_step: int | None = None
        self._began_s = 0.0
        self._batch_size = 0

    def note(self, text: str) -> None:
        """Print one line of information."""
        self._console.print(text, markup=False)

    def warning(self, text: str) -> None:
        """Print one line as a warning."""
        self._console.print(f"[yellow]![/yellow] {escape(text)}")

    def phase(self, name: str) -> None:
        """Print the name of the next phase."""
        self._console.print(f"[bold]{name}[/bold]")

    def data(self, report: DataReport) -> None:
        """Print the images per split and label, and the warnings about them."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("split")
        table.add_column("images", justify="right")
        table.add_column("per label", overflow="fold")
        for split, counts in report.counts.items():
            shown = [f"{label} {count}" for label, count in counts.items()]
            more = f", {len(shown) - _MAX_SHOWN_LABELS} more" if len(shown) > _MAX_SHOWN_LABELS else ""
            table.add_row(
                split, f"{sum(counts.values()):,}", escape(", ".join(shown[:_MAX_SHOWN_LABELS]) + more)
            )
        self._console.print(table)
        for note in report.notes():
            self.note(note)
        for warning in report.warnings():
            self.warning(warning)

    def images_done(self, what: str, done: int, images: int) -> None:
        """Print the progress of a long step; without a terminal, only when it is finished."""
        finished = done == images
        if finished or self._console.is_terminal:
            text = f"{what} {done:,} of {images:,} images"
            self._console.print(text, markup=False, end="\n" if finished else "\r")

    def curve(self, points: Sequence[CurvePoint]) -> None:
        """Print the accuracy by number of examples."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("images per label", "accuracy", "95 % interval", "subsets", "worst", "best"):
            table.add_column(column, justify="right")
        for point in points:
            interval = f"{point.low:.1%} to {point.high:.1%}"
            spread = f"{point.worst:.1%}", f"{point.best:.1%}"
            table.add_row(point.examples(), f"{point.mean:.1%}", interval, str(point.draws), *spread)
        self._console.print(table)

    @contextmanager
    def training(self, total_steps: int, batch_size: int) -> Iterator[None]:
        """Show a progress bar with images/s and the time left, which early stopping may shorten."""
        self._batch_size, self._first_step = batch_size, None
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        # Without a terminal, a bar would leave an empty line.
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as self._bar:
            self._bar.add_task("training", total=total_steps, rate="")
            yield
        self._bar = None

    def step_done(self, steps: int) -> None:
        """Move the bar to the number of finished steps, including those before a resume."""
        if self._first_step is None:
            self._first_step, self._began_s = steps, time.perf_counter()
        elapsed_s = time.perf_counter() - self._began_s
        rate = (steps - self._first_step) * self._batch_size / elapsed_s if elapsed_s else 0.0
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=steps, rate=f"{rate:,.0f} images/s")

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """Print the record of an epoch."""
        head = "  head only" if record.head_only else ""
        self._console.print(
            f"epoch {record.epoch:3d}  train loss {record.train_loss:.4f}  "
            f"validation loss {record.validation_loss:.4f}  accuracy {record.validation_accuracy:7.2%}  "
            f"{record.images_per_s:8,.0f} images/s{head}" + ("  [green]best[/green]" if is_best else "")
        )

    def checks(self, checks: Sequence[Check]) -> None:
        """Print every check with its value and limit."""
        for check in checks:
            mark = "[green]✓[/green]" if check.passed else "[red]✗[/red]"
            self._console.print(f"  {mark} {escape(f'{check.name}: {check.detail}')}")

    def challenge(self, challenge: Challenge, model: str) -> None:
        """Print the comparison with the champion."""
        self.note(challenge.summary(model))
        if challenge.left_out:
            total = challenge.images + challenge.left_out + challenge.repeated
            self.note(f"  {challenge.left_out:,} of {total:,} test images left out: the champion knows them")
        for check in challenge.checks:
            mark = "[green]✓[/green]" if check.passed else "[red]✗[/red]"
            self._console.print(f"  {mark} {escape(f'{check.name}: {check.detail}')}")

    def biases(self, recipe: Recipe, validation: Estimate | None) -> None:
        """Print the validation accuracy, and which accuracies are optimistic."""
        if validation is not None:
            chose = ", optimistic: it chose the weights" if recipe.validation_chose_epoch else ""
            self.note(
                f"  validation accuracy {validation.value:.2%} "
                f"(95 % interval {validation.low:.2%} to {validation.high:.2%}){chose}"
            )
        if recipe.tuned_on_test:
            self.warning(
                f"the test accuracy is optimistic: recipe {recipe.name} chose {recipe.tuned_on_test} by test "
                "images"
            )

    def published(
        self, location: str, repository: str, metrics: Mapping[str, int | float], seconds: float
    ) -> None:
        """Print the bundle's path or URL and its accuracy, and the command that serves it."""
        self._console.print(
            f"[bold green]published[/bold green] {escape(location)}: test accuracy "
            f"{metrics['accuracy']:.2%} on {metrics['images']:,} images "
            f"(95 % interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}), "
            f"{seconds:.0f} s"
        )
        self._console.print(f"next: lenserve serve --repository {repository}", markup=False)

    def candidate(self, repository: str, model: str, version: int) -> None:
        """Print that a version is not served by default, and the command that serves it."""
        self.warning(
            f"version {version} is a candidate: it is not served by default. To serve it: "
            f"lenserve models promote {model}@{version} --repository {repository}"
        )
