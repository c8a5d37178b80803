"""Replays a network as CUDA graphs, one per batch size. Independent of files and golden examples.

A graph launches all its kernels at once instead of one by one: twice as fast at batch 1 (ResNet-50, FP16,
NHWC; docs/gpu.md). A graph reads and writes fixed addresses, so each has separate buffers for images and
outputs on the device, in total less than two batches of the largest size.

ONNX Runtime keeps a graph in the thread that captured it (CUDAExecutionProvider::PerThreadContext). All runs
of a session with graphs therefore happen in one thread, which also serializes replays: they are not
thread-safe. ONNX Runtime captures in CUDA's global mode: most CUDA calls of other threads then fail and
invalidate the capture. `CUDA_CALLS` prevents such calls during a capture.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from serving.bundle.images import Pixels
from serving.engine.base import Floats
from serving.engine.cuda import quiet_logger

OUTPUT_NAMES = ("probabilities", "embedding")

# Two plain runs and the run that captures. ONNX Runtime 1.31 does all three in the first call.
_CAPTURING_RUNS = 3
# ONNX Runtime's graph id for a run without a graph.
_NO_GRAPH = -1
# Maximum difference between a replay and a plain run, relative to the largest value. The kernels are the
# same; a replay of other images or of overwritten memory differs by much more.
_REPLAY_TOLERANCE = 1e-2


class CudaCalls:
    """A lock that CUDA calls hold shared and a capture holds exclusively."""

    def __init__(self) -> None:
        # Held while a session is opened or a graph is prepared, which takes long.
        self.loading = threading.Lock()
        self._changed = threading.Condition()
        self._running = 0
        self._capturing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait until no thread captures a graph."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if not self._running:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other thread makes a CUDA call."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


CUDA_CALLS = CudaCalls()  # one per process: CUDA's rule applies to all threads


@dataclass(frozen=True, slots=True)
class _Graph:
    """The graph of one batch size, with its buffers and the expected outputs."""

    images: Any  # OrtValue (B, H, W, C) uint8
    outputs: Sequence[Any]  # OrtValues (B, K) and (B, D) float32
    binding: Any  # binds images and outputs to the session
    options: Any  # options of a run, with the graph id
    expected: Sequence[Floats]  # outputs of a plain run on the images of `_noise`


class CudaGraphs:
    """The graphs of one session, and the thread that runs them."""

    def __init__(self, session: Any, sizes: Sequence[int], device: tuple[str, int]) -> None:  # noqa: ANN401 - untyped library
        """Store the options.

        Args:
            session: a session opened with enable_cuda_graph.
            sizes: batch sizes that get a graph, ascending. Larger batches run without a graph.
            device: ONNX Runtime's device type, and the device index.
        """
        self._session = session
        self._sizes = sizes
        self._device = device
        self._image_shape = tuple(session.get_inputs()[0].shape[1:])
        self._graphs: dict[int, _Graph] = {}
        # A new id for each attempt, because a failed graph may still exist. 0 is reserved.
        self._ids = itertools.count(1)
        self._padded: Pixels | None = None  # (largest B, H, W, C): a buffer for partial batches
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cuda-graphs")

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that have a graph so far."""
        return tuple(sorted(self._graphs))

    def prepare(self, count: int) -> None:
        """Capture the graph for this number of images unless it exists, and check its replay.

        Raises:
            RuntimeError: a replay gives other outputs than a plain run.
            Exception: any exception of ONNX Runtime.
        """
        size = self._size(count)
        if size is not None and size not in self._graphs:
            self._thread.submit(self._capture, size).result()

    def run(self, images: Pixels) -> Sequence[Floats]:
        """Replay the graph that was prepared for this number of images.

        Args:
            images: (N, H, W, C) uint8, any N.

        Returns: (N, K) and (N, D) float32. Later runs do not change them.
        """
        return self._thread.submit(self._run, images).result()

    def _size(self, count: int) -> int | None:
        return next((size for size in self._sizes if size >= count), None)

    def _run(self, images: Pixels) -> Sequence[Floats]:
        size = self._size(len(images))
        with CUDA_CALLS.shared():
            if size is None:
                return self._run_plain(images)
            found = self._replay(self._graphs[size], self._pad(images, size))
        return [rows[: len(images)] for rows in found]

    def _pad(self, images: Pixels, size: int) -> Pixels:
        if images.shape[1:] != self._image_shape or images.dtype != np.uint8:
            # OrtValue.update_inplace checks only the number of elements.
            raise ValueError(
                f"images are {images.dtype} {images.shape[1:]}, the network takes uint8 {self._image_shape}"
            )
        if len(images) == size:
            return images
        if self._padded is None:
            self._padded = np.zeros((max(self._sizes), *self._image_shape), np.uint8)  # (B, H, W, C)
        self._padded[: len(images)] = images
        self._padded[len(images) : size] = 0
        return self._padded[:size]

    def _replay(self, graph: _Graph, images: Pixels) -> Sequence[Floats]:
        graph.images.update_inplace(images)
        # The copy runs on the default stream, the graph on another.
        graph.binding.synchronize_inputs()
        self._session.run_with_iobinding(graph.binding, graph.options)
        return [_owned(value.numpy()) for value in graph.outputs]

    def _run_plain(self, images: Pixels) -> Sequence[Floats]:
        found: Sequence[Floats] = self._session.run(OUTPUT_NAMES, {"image": images}, _run_options(_NO_GRAPH))
        return found

    def _capture(self, size: int) -> None:
        with CUDA_CALLS.loading, quiet_logger():
            with CUDA_CALLS.shared():
                expected = self._run_plain(self._noise(size))  # also searches for kernels, which is slow
                graph = self._bind(size, expected)
            with CUDA_CALLS.exclusive():
                for _ in range(_CAPTURING_RUNS):
                    self._session.run_with_iobinding(graph.binding, graph.options)
            with CUDA_CALLS.shared():
                self._check(size, graph)
                self._graphs[size] = graph
                if len(self._graphs) == len(self._sizes):
                    # A later capture may allocate memory that an earlier graph uses for intermediate values.
                    for each in self._sizes:
                        self._check(each, self._graphs[each])

    def _bind(self, size: int, expected: Sequence[Floats]) -> _Graph:
        value = onnxruntime.OrtValue
        blank = np.zeros(
            (size, *self._image_shape), np.uint8
        )  # (B, H, W, C), different from the noise of the check
        images = value.ortvalue_from_numpy(blank, *self._device)
        outputs = [
            value.ortvalue_from_shape_and_type(rows.shape, np.float32, *self._device) for rows in expected
        ]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("image", images)
        for name, output in zip(OUTPUT_NAMES, outputs, strict=True):
            binding.bind_ortvalue_output(name, output)
        return _Graph(images, outputs, binding, _run_options(next(self._ids)), expected)

    def _check(self, size: int, graph: _Graph) -> None:
        found = self._replay(graph, self._noise(size))
        for name, rows, expected in zip(OUTPUT_NAMES, found, graph.expected, strict=True):
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
            if not np.allclose(rows, expected, rtol=0, atol=_REPLAY_TOLERANCE * largest, equal_nan=True):
                raise RuntimeError(f"the CUDA graph for {size} images gives other {name} than a plain run")

    def _noise(self, size: int) -> Pixels:
        shape = (size, *self._image_shape)
        return np.random.default_rng(size).integers(0, 256, shape, np.uint8)  # (B, H, W, C)


def _run_options(graph: int) -> Any:  # noqa: ANN401 - untyped library
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _owned(rows: Floats) -> Floats:
    """Return the rows, copied if they share memory that the next replay overwrites."""
    return rows if rows.flags.owndata else rows.copy()
