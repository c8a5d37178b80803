"""The interface of engines: images in, probabilities out, on a device. Cheap to import.

`Engine` is the only class that tests replace by a fake.
"""

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels

Floats = npt.NDArray[np.float32]

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(slots=True)  # not frozen: creation would take several times as long
class Output:
    """The outputs of a network for N images."""

    probabilities: Floats  # (N, K), calibrated
    embedding: Floats  # (N, D), penultimate features
    interrupted: bool = False  # the run waited for another device server: its duration predicts nothing

    def __getitem__(self, rows: slice) -> "Output":
        return Output(self.probabilities[rows], self.embedding[rows])


class Engine(Protocol):
    """A loaded network.

    Attributes:
        max_images_on_loop: the largest batch that may run on the event loop; 0: every batch runs in a thread.
    """

    max_images_on_loop: int

    def run(self, images: Pixels) -> Output:
        """Run the network. Called in a worker thread.

        Args:
            images: (N, H, W, C) uint8, 1 <= N <= the largest batch that it was loaded for.

        Raises:
            EngineError: the network failed.
            OutOfMemory: there was too little memory. A later run may succeed.
        """


@dataclass(frozen=True, slots=True)
class Device:
    """The device that networks run on, and why it was chosen."""

    kind: str  # cpu or cuda
    index: int
    reason: str
    allow_tf32: bool = False  # on CUDA: FP32 networks multiply in TF32, with 10 bits of mantissa
    cuda_graphs: bool = True  # on CUDA: one launch for all kernels of a batch, if the network supports it

    @property
    def name(self) -> str:
        """cpu, or cuda:N."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @property
    def provider(self) -> str:
        """Name of the ONNX Runtime execution provider."""
        return CPU_PROVIDER if self.kind == "cpu" else CUDA_PROVIDER


def batch_buckets(device: Device, max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes to pad to: powers of two on CUDA, where each new shape costs a search; none on a CPU."""
    if device.kind == "cpu":
        return ()
    powers = itertools.takewhile(lambda size: size < max_batch_size, (2**n for n in itertools.count()))
    return (*powers, max_batch_size)
