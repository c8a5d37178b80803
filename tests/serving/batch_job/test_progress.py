"""Progress of a batch: a line every few seconds in a log, with the time left."""

import io

from rich.console import Console

from serving.batch_job.progress import BatchProgress


def test_a_log_gets_a_line_every_few_seconds_with_the_time_left() -> None:
    """Images of earlier runs are done, but do not count into the rate."""
    text, now_s = io.StringIO(), [0.0]
    progress = BatchProgress(
        Console(file=text, width=200), total=10_000, done=2_000, clock=lambda: now_s[0], interval_s=10
    )
    with progress.shown():
        for now_s[0] in (4.0, 8.0, 12.0):
            progress.add(400, failed=1)

    assert text.getvalue() == "classified 3,200 of 10,000 images, 100 images/s, 0:01:08 left, 3 failed\n"


def test_one_image_is_singular() -> None:
    """Also in progress."""
    text, now_s = io.StringIO(), [0.0]
    console = Console(file=text, width=200)
    progress = BatchProgress(console, total=1, done=0, clock=lambda: now_s[0], interval_s=0)
    with progress.shown():
        now_s[0] = 0.5
        progress.add(1, failed=0)

    assert text.getvalue() == "classified 1 of 1 image, 2 images/s, 0:00:00 left\n"


def test_a_terminal_gets_a_bar() -> None:
    """With the count, the rate and the time left."""
    text = io.StringIO()
    progress = BatchProgress(Console(file=text, width=120, force_terminal=True), total=200, done=0)
    with progress.shown():
        progress.add(100, failed=2)

    assert "100/200" in text.getvalue()
    assert "2 failed" in text.getvalue()
