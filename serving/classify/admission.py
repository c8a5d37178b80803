"""Admission control: limits the number of pending images. Independent of what is done with them."""

from serving.errors import Overloaded


class Admission:
    """Counts pending images, and rejects images above the limit immediately."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0

    def check(self) -> None:
        """Check for at least one free place. It is cheapest to reject a request before it is read.

        Raises:
            Overloaded: the limit is reached.
        """
        if self.pending >= self.limit:
            raise Overloaded(f"{self.pending} images are pending, the limit is {self.limit}: retry later")

    def enter(self, images: int) -> None:
        """Reserve places for images until `leave`.

        Raises:
            Overloaded: the images would exceed the limit.
        """
        if self.pending + images > self.limit:
            raise Overloaded(
                f"{self.pending} images are pending, {images} more would exceed the limit of {self.limit}: "
                "retry later"
            )
        self.pending += images

    def leave(self, images: int) -> None:
        """Release the places of images."""
        self.pending -= images
