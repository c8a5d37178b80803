"""What a worker and the device server share: a socket for words of fixed size, and memory for pixels.

A connection is one network of one worker. It is opened with the network's file and the memory, and answered;
then each `Run` is answered by one `RunResult`, with the images and after them the outputs in the memory. The
side that needs more memory enlarges it. It has no name: it is gone with the last process that has it open.
"""

import mmap
import os
import struct
from dataclasses import astuple, dataclass
from typing import ClassVar, Self

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Output

MAX_WORDS_BYTES = 2**16  # of a file's name or an error's message


@dataclass(frozen=True, slots=True)
class Run:
    """(count, height, width, channels) uint8 images are in the memory.

    The first one opens: its height is the length of the file's name, which follows; the memory comes with it.
    """

    count: int
    height: int
    width: int
    channels: int

    layout: ClassVar = struct.Struct("=4I")

    def pack(self) -> bytes:
        """As it is sent."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From what was received."""
        return cls(*cls.layout.unpack(data))


@dataclass(frozen=True, slots=True)
class RunResult:
    """Probabilities (count, classes) and embeddings (count, features) are in the memory, or words follow."""

    count: int
    classes: int
    features: int
    words_bytes: int = 0  # of `Error: message`

    layout: ClassVar = struct.Struct("=4I")

    def pack(self) -> bytes:
        """As it is sent."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From what was received."""
        return cls(*cls.layout.unpack(data))


class Memory:
    """Memory that two processes have open. A class because it is mapped again when it grew."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes = np.empty(0, np.uint8)

    @classmethod
    def create(cls) -> Self:
        """Empty, and without a name."""
        return cls(os.memfd_create("lenserve"))

    def close(self) -> None:
        """Leave it."""
        os.close(self.descriptor)
        self._bytes = np.empty(0, np.uint8)

    def write_images(self, images: Pixels) -> None:
        """Put images into it."""
        self._mapped(images.nbytes)[:] = images.reshape(-1)

    def images(self, run: Run) -> Pixels:
        """The images in it, not copied: (count, height, width, channels) uint8."""
        shape = (run.count, run.height, run.width, run.channels)
        return self._mapped(int(np.prod(shape))).reshape(shape)

    def write_output(self, output: Output) -> RunResult:
        """Put outputs into it, over the images."""
        joined = np.concatenate([output.probabilities.reshape(-1), output.embedding.reshape(-1)])
        self._mapped(joined.nbytes)[:] = joined.view(np.uint8)
        return RunResult(len(output.probabilities), output.probabilities.shape[1], output.embedding.shape[1])

    def output(self, answer: RunResult) -> Output:
        """A copy of the outputs in it."""
        width = answer.classes + answer.features
        joined = self._mapped(4 * answer.count * width).view(np.float32).copy()
        split = answer.count * answer.classes
        return Output(
            joined[:split].reshape(answer.count, answer.classes),
            joined[split:].reshape(answer.count, answer.features),
        )

    def _mapped(self, length: int) -> Pixels:
        if length > len(self._bytes):
            if length > os.fstat(self.descriptor).st_size:
                os.ftruncate(self.descriptor, length)
            self._bytes = np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8)
        return self._bytes[:length]
