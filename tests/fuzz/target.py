"""A target makes an input from random numbers, and checks what the code under test does with it."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol


class Checker(Protocol):
    """A target that is ready. It may keep state from input to input, as a server does."""

    def make(self, random: Random) -> Any:  # noqa: ANN401 - each target has its own kind of input
        """Return an input. It depends on the random numbers alone, and its `repr` describes it."""

    async def check(self, made: Any) -> str:  # noqa: ANN401 - as above
        """Give the input to the code under test; return the expected outcome, such as "INVALID_ARGUMENT".

        Raises:
            Exception: anything unexpected.
        """


class Open(Protocol):
    """Prepares a target, and cleans up after it."""

    def __call__(self) -> AbstractAsyncContextManager[Checker]:
        """`async with` it in the event loop in which the inputs are checked."""


@dataclass(frozen=True, slots=True)
class Target:
    """A part of the server that reads what strangers or files say."""

    name: str
    share: int  # of the inputs of a run, in parts of a thousand; cheap targets get most
    open: Open
