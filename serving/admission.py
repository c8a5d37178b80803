"""The door: how much work may be inside at once. Knows nothing of what the work is."""

from serving.errors import Overloaded


class Admission:
    """Counts admitted images, and refuses at once what would pass the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0

    def enter(self, images: int) -> None:
        """Take places, which `leave` gives back.

        Raises:
            Overloaded: with the images inside, those that came, and the limit.
        """
        if self.pending + images > self.limit:
            raise Overloaded(
                f"{self.pending} images are pending, {images} more would pass the limit of {self.limit}"
            )
        self.pending += images

    def leave(self, images: int) -> None:
        """Give places back."""
        self.pending -= images
