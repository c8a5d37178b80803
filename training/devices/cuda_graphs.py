"""Captures a training step as a CUDA graph, which launches all its kernels at once.

For a small network the kernel launches take longer than the kernels. After a few warm-up steps one step is
captured, and then replayed on new images. Independent of networks and optimizers.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from training.errors import GraphCaptureFailed

# Steps before the capture: they choose cuDNN's algorithms and allocate the optimizer's state.
_WARMUP_STEPS = 3

Step = Callable[[Tensor, Tensor, int], Tensor]  # images, targets, images of all processes -> mean loss


class GraphCapturer(Protocol):
    """Captures work on a device. A protocol, so that tests need no GPU."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run the work now, on the stream that `capture` uses."""

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Capture the work without running it.

        Returns: the output tensor of the work, and a function that replays the work and refills that tensor.
        """


class GraphedStep:
    """A training step that is captured once and then replayed, with fixed input and output buffers."""

    def __init__(self, step: Step, capturer: GraphCapturer) -> None:
        """Wrap a step.

        Args:
            step: must read all varying values from tensors; a Python number would keep its captured value.
            capturer: captures work on the step's device.
        """
        self._step = step
        self._capturer = capturer
        self._warmup_steps = 0
        self._replay: Callable[[], None] | None = None
        self._buffers: tuple[Tensor, Tensor, int]
        self._loss: Tensor

    def __call__(self, images: Tensor, targets: Tensor, batch: int) -> Tensor:
        """Run one step; see `training.learning.steps.train_step`.

        A batch whose shapes differ from the captured one runs without the graph.

        Raises:
            GraphCaptureFailed: the step does something that a CUDA graph cannot contain.
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
            # A failed capture leaves torch's random generator and current stream in capture mode, so this
            # process cannot continue without graphs.
            reason = str(error).partition("\n")[0]
            raise GraphCaptureFailed(
                f"a training step cannot be captured as a CUDA graph ({reason}): run the same command with "
                "--resume and --set training.cuda_graphs=false"
            ) from error
        return self._replay

    def _fits(self, images: Tensor, targets: Tensor, batch: int) -> bool:
        return self._buffers[2] == batch and all(
            (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
            for buffer, value in ((self._buffers[0], images), (self._buffers[1], targets))
        )


class CudaGraphCapturer:
    """Captures CUDA graphs on a separate stream."""

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
        """Capture on the stream; see `GraphCapturer`."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may use CUDA during capture, for example to pin memory.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay
