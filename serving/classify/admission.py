"""The door: how much work may be inside at once. Knows nothing of what the work is."""

from serving.errors import Overloaded


class Admission:
    """Counts admitted images, and refuses at once what would pass the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0

    def check(self) -> None:
        """Whether there is a place at all: what is refused before it has come costs least.

        Raises:
            Overloaded: there is none.
        """
        if self.pending >= self.limit:
            raise Overloaded(f"{self.pending} images are pending, the limit is {self.limit}")

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
