"""Shows how far a batch is: a bar on a terminal, otherwise a line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.counted import counted

_LINE_INTERVAL_S = 10.0


class BatchProgress:
    """Counts images, and shows them with images/s, the time left and failed images."""

    def __init__(
        self,
        console: Console,
        *,
        total: int,
        done: int,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = _LINE_INTERVAL_S,
    ) -> None:
        """Store the options.

        Args:
            console: stderr.
            total: images of the whole job.
            done: images that an earlier run has classified.
            clock: seconds.
            interval_s: seconds between two lines, if the console is not a terminal.
        """
        self._console = console
        self._total = total
        self._done_before = self._done = done
        self._failed = 0
        self._clock = clock
        self._interval_s = interval_s
        self._began_s = self._line_at_s = clock()
        self._bar: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a bar, if the console is a terminal."""
        columns = (
            TextColumn("classifying"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as bar:
            bar.add_task("classifying", total=self._total, completed=self._done, rate="")
            self._bar = bar
            yield
        self._bar = None

    @property
    def images_per_s(self) -> float:
        """Images of this run per second; 0 at its beginning."""
        elapsed_s = self._clock() - self._began_s
        return (self._done - self._done_before) / elapsed_s if elapsed_s else 0.0

    def add(self, images: int, failed: int) -> None:
        """Count images that were classified, or failed."""
        self._done += images
        self._failed += failed
        if self._bar is not None:
            rate = f"{self.images_per_s:,.0f} images/s" + (
                f", {self._failed:,} failed" if self._failed else ""
            )
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate)
        now_s = self._clock()
        if not self._console.is_terminal and now_s - self._line_at_s >= self._interval_s:
            self._line_at_s = now_s
            self._console.print(self._line(), markup=False)

    def _line(self) -> str:
        rate = self.images_per_s
        left = f", {_duration((self._total - self._done) / rate)} left" if rate else ""
        failed = f", {self._failed:,} failed" if self._failed else ""
        done = f"classified {self._done:,} of {counted(self._total, 'image')}"
        return f"{done}, {rate:,.0f} images/s{left}{failed}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
