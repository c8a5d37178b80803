"""What may be said and asked in the midst of long work on many images."""

from training.data.storage.decoded_images import ProgressCallback
from training.run.display import Display
from training.run.interrupts import Interrupts


def report_progress(what: str, display: Display, interrupts: Interrupts) -> ProgressCallback:
    """A watcher of work that comes before training: it shows how far it is, and leaves when asked.

    Args:
        what: has been done to the images, `decoded` say.
        display: on which it is shown.
        interrupts: that may ask.

    Returns: to be called with how many of how many images are done; raises `Interrupted`.
    """

    def look(done: int, images: int) -> None:
        interrupts.raise_if_stopped("nothing was trained yet")
        display.images_done(what, done, images)

    return look
