"""What a worker and the device server share: a socket for messages of fixed size, and memory for pixels.

A connection belongs to one network of one worker. The worker opens it with the name of the network's file
and the shared memory, and receives a `RunResult`. Then it writes images into the memory and sends a
`RunRequest`; the device server writes the outputs over them and sends a `RunResult`. The side that needs more
memory enlarges it. The memory has no name, so it goes away with the last process that has it open.
"""

import mmap
import os
import struct
from dataclasses import astuple, dataclass
from typing import ClassVar, Self

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Output

MAX_TEXT_BYTES = 2**16  # of a file's name or an error


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The memory holds (count, height, width, channels) uint8 images.

    The first request of a connection opens it: its height is the length of the file's name, which follows,
    and the memory's descriptor comes with it.
    """

    count: int
    height: int
    width: int
    channels: int

    layout: ClassVar = struct.Struct("=4I")

    def pack(self) -> bytes:
        """Encode it."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode it."""
        return cls(*cls.layout.unpack(data))


@dataclass(frozen=True, slots=True)
class RunResult:
    """The memory holds probabilities and embeddings for `count` images, or an error follows."""

    count: int
    classes: int  # probabilities are (count, classes) float32
    features: int  # embeddings are (count, features) float32, after them
    error_bytes: int = 0  # length of `ErrorClass: message`

    layout: ClassVar = struct.Struct("=4I")

    def pack(self) -> bytes:
        """Encode it."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode it."""
        return cls(*cls.layout.unpack(data))


class SharedMemory:
    """Memory that two processes have open, and that either may enlarge."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes = np.empty(0, np.uint8)

    @classmethod
    def create(cls) -> Self:
        """Create empty memory without a name."""
        return cls(os.memfd_create("lenserve"))

    def close(self) -> None:
        """Close it in this process."""
        os.close(self.descriptor)
        self._bytes = np.empty(0, np.uint8)

    def write_images(self, images: Pixels) -> None:
        """Write images into it."""
        self._mapped(images.nbytes)[:] = images.reshape(-1)

    def images(self, request: RunRequest) -> Pixels:
        """A view of the images in it: (count, height, width, channels) uint8."""
        shape = (request.count, request.height, request.width, request.channels)
        return self._mapped(int(np.prod(shape))).reshape(shape)

    def write_output(self, output: Output) -> RunResult:
        """Write outputs into it, over the images."""
        joined = np.concatenate([output.probabilities.reshape(-1), output.embedding.reshape(-1)])
        self._mapped(joined.nbytes)[:] = joined.view(np.uint8)
        return RunResult(len(output.probabilities), output.probabilities.shape[1], output.embedding.shape[1])

    def output(self, result: RunResult) -> Output:
        """A copy of the outputs in it."""
        width = result.classes + result.features
        joined = self._mapped(4 * result.count * width).view(np.float32).copy()
        split = result.count * result.classes
        return Output(
            joined[:split].reshape(result.count, result.classes),
            joined[split:].reshape(result.count, result.features),
        )

    def _mapped(self, length: int) -> Pixels:
        if length > len(self._bytes):
            if length > os.fstat(self.descriptor).st_size:
                os.ftruncate(self.descriptor, length)
            self._bytes = np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8)
        return self._bytes[:length]
