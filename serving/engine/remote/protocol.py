"""The protocol between a worker and the device server: a socket for messages, and memory for pixels.

A connection belongs to one network of one worker. The worker opens it by sending the network's file name and
the shared memory, and receives a `RunResult`. For each run it writes images to the memory and sends a
`RunRequest`; the device server overwrites them with the outputs and sends a `RunResult`. The side that needs
more memory enlarges it. The memory has no name, so the kernel frees it when the last process closes it.
"""

import mmap
import os
import struct
from dataclasses import astuple, dataclass
from typing import ClassVar, Self

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Output

MAX_TEXT_BYTES = 2**16  # maximum length of a file name or an error


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Asks for a run. The memory holds (count, height, width, channels) uint8 images.

    The first request of a connection opens it: its height is the length of the file name, which follows, and
    it carries the memory's descriptor.
    """

    count: int
    height: int
    width: int
    channels: int

    layout: ClassVar = struct.Struct("=4I")

    def pack(self) -> bytes:
        """Encode the message."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode a message."""
        return cls(*cls.layout.unpack(data))


@dataclass(frozen=True, slots=True)
class RunResult:
    """The memory holds probabilities and embeddings for `count` images, or an error follows."""

    count: int
    classes: int  # probabilities are (count, classes) float32
    features: int  # embeddings are (count, features) float32, after the probabilities
    error_bytes: int = 0  # length of `ErrorClass: message`

    layout: ClassVar = struct.Struct("=4I")

    def pack(self) -> bytes:
        """Encode the message."""
        return self.layout.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode a message."""
        return cls(*cls.layout.unpack(data))


class SharedMemory:
    """Memory shared by two processes. Either may enlarge it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes = np.empty(0, np.uint8)

    @classmethod
    def create(cls) -> Self:
        """Create empty memory without a name."""
        return cls(os.memfd_create("lenserve"))

    def close(self) -> None:
        """Close the memory in this process."""
        os.close(self.descriptor)
        self._bytes = np.empty(0, np.uint8)

    def write_images(self, images: Pixels) -> None:
        """Write images to the memory."""
        self._mapped(images.nbytes)[:] = images.reshape(-1)

    def images(self, request: RunRequest) -> Pixels:
        """Return a view of the images in the memory, (count, height, width, channels) uint8."""
        shape = (request.count, request.height, request.width, request.channels)
        return self._mapped(int(np.prod(shape))).reshape(shape)

    def write_output(self, output: Output) -> RunResult:
        """Write outputs to the memory, over the images."""
        joined = np.concatenate([output.probabilities.reshape(-1), output.embedding.reshape(-1)])
        self._mapped(joined.nbytes)[:] = joined.view(np.uint8)
        return RunResult(len(output.probabilities), output.probabilities.shape[1], output.embedding.shape[1])

    def output(self, result: RunResult) -> Output:
        """Return a copy of the outputs in the memory."""
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
