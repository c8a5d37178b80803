"""The progress callback of long steps before training."""

from training.data.storage.decoded_images import ProgressCallback
from training.run.display import Display
from training.run.interrupts import Interrupts


def report_progress(what: str, display: Display, interrupts: Interrupts) -> ProgressCallback:
    """Create a callback that shows progress and raises `Interrupted` after a signal.

    Args:
        what: start of the line, for example "decoded".
        display: where progress is shown.
        interrupts: checked at each call.

    Returns: a function of the number of processed images and the total.
    """

    def on_progress(done: int, images: int) -> None:
        interrupts.raise_if_stopped("nothing has been trained yet")
        display.images_done(what, done, images)

    return on_progress
