"""Admission control: how many images may be pending at once. Knows nothing of what is done with them."""

from serving.errors import Overloaded


class Admission:
    """Counts pending images, and rejects at once what would exceed the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0

    def check(self) -> None:
        """Check for at least one free place: rejecting a request before it is read costs least.

        Raises:
            Overloaded: there is no free place.
        """
        if self.pending >= self.limit:
            raise Overloaded(f"{self.pending} images are pending, the limit is {self.limit}: retry later")

    def enter(self, images: int) -> None:
        """Take places for images, which `leave` gives back.

        Raises:
            Overloaded: with the number of pending images, of new images, and the limit.
        """
        if self.pending + images > self.limit:
            raise Overloaded(
                f"{self.pending} images are pending, {images} more would exceed the limit of {self.limit}: "
                "retry later"
            )
        self.pending += images

    def leave(self, images: int) -> None:
        """Give places of images back."""
        self.pending -= images
