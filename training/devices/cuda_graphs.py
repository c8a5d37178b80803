"""A training step recorded as a CUDA graph: one launch where Python would launch every kernel by itself.

A small network's kernels take less time on a GPU than their launches on the CPU. After a few plain steps one
is recorded, and from then on it is replayed on new images. Knows no network and no optimizer.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from training.errors import GraphCaptureFailed

# What is made at the first use must exist before the recording: algorithms, the optimizer's state.
_WARMUP_STEPS = 3

Step = Callable[[Tensor, Tensor, int], Tensor]  # images, targets, images of all processes -> mean loss


class GraphCapturer(Protocol):
    """CUDA's part of it."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run at once, as `capture` will."""

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record without running; what it returns is filled by each call of the second value."""


class GraphedStep:
    """Replays a step. A class because images, targets and loss keep their places in the GPU's memory."""

    def __init__(self, step: Step, capturer: GraphCapturer) -> None:
        """Record nothing yet.

        Args:
            step: must read all that changes from tensors: a number would stay what it was when recorded.
            capturer: of the device that the step runs on.
        """
        self._step = step
        self._capturer = capturer
        self._warmup_steps = 0
        self._replay: Callable[[], None] | None = None
        self._buffers: tuple[Tensor, Tensor, int]
        self._loss: Tensor

    def __call__(self, images: Tensor, targets: Tensor, batch: int) -> Tensor:
        """One step; see `training.learning.steps.train_step`.

        Raises:
            GraphCaptureFailed: the step does what a CUDA graph cannot hold.
        """
        if self._warmup_steps < _WARMUP_STEPS:
            self._warmup_steps += 1
            return self._capturer.run(lambda: self._step(images, targets, batch))
        replay = self._replay or self._capture(images, targets, batch)
        if not self._fits(images, targets, batch):
            return self._step(images, targets, batch)
        self._buffers[0].copy_(images)
        self._buffers[1].copy_(targets)
        replay()
        return self._loss.clone()

    def _capture(self, images: Tensor, targets: Tensor, batch: int) -> Callable[[], None]:
        self._buffers = images.clone(), targets.clone(), batch
        try:
            self._loss, self._replay = self._capturer.capture(lambda: self._step(*self._buffers))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # torch's random generator and current stream are left as they were in the recording: plain steps
            # could not go on in this process.
            reason = str(error).partition("\n")[0]
            raise GraphCaptureFailed(
                f"a training step cannot be recorded as a CUDA graph ({reason}): use the same command with "
                "--resume and --set training.cuda_graphs=false"
            ) from error
        return self._replay

    def _fits(self, images: Tensor, targets: Tensor, batch: int) -> bool:
        return self._buffers[2] == batch and all(
            (place.shape, place.dtype) == (value.shape, value.dtype)
            for place, value in ((self._buffers[0], images), (self._buffers[1], targets))
        )


class CudaGraphCapturer:
    """torch's CUDA graphs on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run on the stream; see `GraphCapturer`."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record on the stream; see `GraphCapturer`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile: one that watches, or pins memory.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay
