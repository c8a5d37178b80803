"""Runs a network on a batch of images in ONNX Runtime. Independent of requests, labels and gRPC."""

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from serving.bundle import variant_file
from serving.bundle.images import Pixels
from serving.counted import counted
from serving.engine.arena import SHRINK, ArenaTimer
from serving.engine.base import CPU_PROVIDER, CUDA_PROVIDER, Device, Engine, Floats, Output, batch_buckets
from serving.engine.cuda import QuietFirstRuns, quiet_logger, why_unusable
from serving.engine.cuda_graphs import CUDA_CALLS, OUTPUT_NAMES, CudaGraphs
from serving.engine.memory_errors import is_out_of_memory
from serving.engine.sessions import Optimizations, SessionFactory, open_onnx
from serving.errors import BundleError, DeviceUnavailable, EngineError, OutOfMemory

# How long to wait for the current run: a longer one hangs, and must not prevent the server from stopping.
_CLOSE_TIMEOUT_S = 5.0

_SHRINK_AFTER_S = 5.0  # seconds after the last batch of several images

_OUTPUTS = dict.fromkeys(OUTPUT_NAMES, "tensor(float)")


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - untyped library
        *,
        threads: int,
        buckets: tuple[int, ...] = (),
        graphs: CudaGraphs | None = None,
        factory: SessionFactory | None = None,
        shrink_after_s: float = _SHRINK_AFTER_S,
    ) -> None:
        """Store a session.

        Args:
            session: session of a network of this project.
            threads: threads per run.
            buckets: batch sizes to pad to, on CUDA.
            graphs: CUDA graphs of the session.
            factory: opens sessions with fewer optimizations.
            shrink_after_s: on a CPU, seconds after the last batch of several images until its memory is
                returned to the system.
        """
        self.threads = threads
        self.max_images_on_loop = 0  # `load_tuned` increases it for cheap networks
        self._session = session
        self._buckets = buckets
        self._graphs = graphs
        self._factory = factory
        self._arena_timer = ArenaTimer(shrink_after_s)
        self._first_runs = QuietFirstRuns()
        self._run_lock = threading.Lock()  # held by a run on CUDA, so that the session outlives it

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self._session.get_inputs()[0].shape[1:]
        return height, width, channels

    @property
    def optimizations(self) -> Optimizations:
        """The optimizations of the current session."""
        return Optimizations() if self._factory is None else self._factory.optimizations

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """The batch sizes that run as CUDA graphs."""
        return () if self._graphs is None else self._graphs.captured

    @classmethod
    def load(cls, model_file: Path, device: Device, *, threads: int, max_batch_size: int) -> "OnnxEngine":
        """Load an ONNX file on a device.

        Args:
            model_file: a network of this project.
            device: device to run it on.
            threads: threads per run, on a CPU.
            max_batch_size: the largest batch to prepare for, on CUDA.

        Raises:
            BundleError: the file cannot be loaded, or is not a network of this project.
            DeviceUnavailable: the device cannot run the network.
            OutOfMemory: the device has too little memory for the network.
        """
        problem = why_unusable() if device.kind == "cuda" else ""
        if problem:
            raise DeviceUnavailable(f"{model_file} cannot run on {device.name}: {problem}")
        factory = SessionFactory(
            model_file, partial(_open, model_file, device, threads), best_optimizations(model_file, device)
        )
        buckets = batch_buckets(device, max_batch_size)
        session = factory.open()
        graphs = (
            CudaGraphs(session, buckets, ("cuda", device.index))
            if factory.optimizations.cuda_graphs
            else None
        )
        return cls(session, threads=threads, buckets=buckets, graphs=graphs, factory=factory)

    def run(self, images: Pixels) -> Output:
        """Run the network; see `Engine.run`."""
        count = len(images)
        try:
            probabilities, embedding = self._outputs(images)
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"the device is out of memory for {counted(count, 'image')}: "
                    "set a smaller max_batch_size, "
                    "serve fewer models, or use another GPU"
                ) from error
            raise EngineError(f"the network failed on {counted(count, 'image')}: {error}") from error
        output = Output(probabilities, embedding)
        return output if len(probabilities) == count else output[:count]  # padded

    def drop_optimization(self, reason: str) -> bool:
        """Reopen the session with fewer optimizations; return False if none is left to drop.

        Must not be called while another thread runs the network: an engine is shared only after its proof.

        Args:
            reason: reason for the log.

        Raises:
            BundleError, OutOfMemory: the session cannot be reopened.
        """
        if self._factory is None or not self._factory.drop_optimization(reason):
            return False
        with CUDA_CALLS.shared():
            self._session = self._graphs = None  # free the memory for the next session
        self._first_runs = QuietFirstRuns()
        self._session = self._factory.open()
        return True

    def release_memory(self) -> None:
        """On a CPU, return the memory of earlier batches to the system; takes a run of one image.

        Raises:
            EngineError: the network was unloaded.
        """
        if not self._buckets:
            _run(self._session, np.zeros((1, *self.image_shape), np.uint8), SHRINK)

    def close(self) -> None:
        """Free the session after the current run; later runs raise EngineError.

        Must not be called on the event loop: it waits while another network's graph is captured, because CUDA
        memory must not be freed during a capture.
        """
        self._arena_timer.close()
        ended = self._run_lock.acquire(timeout=_CLOSE_TIMEOUT_S)
        with CUDA_CALLS.shared():
            self._session = self._graphs = self._factory = None
        if ended:
            self._run_lock.release()

    def _outputs(self, images: Pixels) -> Sequence[Floats]:
        if not self._buckets:  # on a CPU
            found = _run(self._session, images)
            if len(images) > 1:
                self._arena_timer.start(self.release_memory)
            return found
        with self._run_lock:
            return self._outputs_on_cuda(images)

    def _outputs_on_cuda(self, images: Pixels) -> Sequence[Floats]:
        failure = self._prepare_graph(len(images))
        if failure:
            self.drop_optimization(failure)
        if self._graphs is not None:
            return self._graphs.run(images)
        padded = self._padded(images)
        with self._first_runs(len(padded)), CUDA_CALLS.shared():
            return _run(self._session, padded)

    def _prepare_graph(self, count: int) -> str:
        """Capture the graph for this number of images unless it exists; return why that failed."""
        if self._graphs is None:
            return ""
        try:
            self._graphs.prepare(count)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            if is_out_of_memory(error):
                raise
            return str(error) or type(error).__name__
        return ""

    def _padded(self, images: Pixels) -> Pixels:
        bucket = next((size for size in self._buckets if size >= len(images)), len(images))
        if bucket == len(images):
            return images
        padding = np.zeros((bucket - len(images), *images.shape[1:]), np.uint8)
        return np.concatenate([images, padding])  # (B, H, W, C)


def close(engine: Engine) -> None:
    """Close an engine in a worker thread if it is an `OnnxEngine`; others hold no resources."""
    if isinstance(engine, OnnxEngine):
        engine.close()


def _run(session: Any, images: Pixels, options: onnxruntime.RunOptions | None = None) -> Sequence[Floats]:  # noqa: ANN401 - untyped library
    if session is None:
        raise EngineError("the network was unloaded")
    found: Sequence[Floats] = session.run(OUTPUT_NAMES, {"image": images}, options)
    return found


def best_optimizations(model_file: Path, device: Device) -> Optimizations:
    """Return the optimizations to try for a network on a device. A pure function.

    Tensor cores prefer NHWC, which helps with FP16 and TF32; in full FP32, ResNet-50 was slower with it on an
    H200. With a CUDA graph, FP16 and NHWC, ResNet-50 takes 0.50, 0.85 and 0.96 of the time at 1, 8 and 64
    images (docs/gpu.md, "bare as a graph" to "bare").
    """
    if device.kind == "cpu":
        return Optimizations()
    is_fp16 = model_file.name == variant_file("fp16")
    return Optimizations(nhwc=is_fp16 or device.allow_tf32, cuda_graphs=device.cuda_graphs)


def _open(model_file: Path, device: Device, threads: int, optimizations: Optimizations) -> Any:  # noqa: ANN401 - untyped library
    if device.kind == "cpu":
        session = open_onnx(model_file, providers(device, optimizations), threads=threads, device=device.name)
    else:
        with CUDA_CALLS.loading, quiet_logger():
            session = open_onnx(
                model_file, providers(device, optimizations), threads=threads, device=device.name
            )
    if session.get_providers()[0] != device.provider:
        raise DeviceUnavailable(f"{model_file} runs on {session.get_providers()[0]}, not on {device.name}")
    inputs = {tensor.name: tensor.type for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor.type for tensor in session.get_outputs()}
    if inputs != {"image": "tensor(uint8)"} or not _OUTPUTS.items() <= outputs.items():
        raise BundleError(f"{model_file} maps {inputs} to {outputs}: not a network of this project")
    return session


def providers(device: Device, optimizations: Optimizations) -> list[Any]:
    """Return ONNX Runtime's execution providers and their options, preferred one first. A pure function."""
    if device.kind == "cpu":
        return [CPU_PROVIDER]
    options = {
        "device_id": str(device.index),
        # The default EXHAUSTIVE search costs hundreds of milliseconds for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # ONNX Runtime's default is "1". TF32 rounds factors to 10 bits of mantissa. In an emulation this
        # changed SqueezeNet's probabilities by 1.5e-3; the tolerance of golden probabilities is 2e-3.
        "use_tf32": str(int(device.allow_tf32)),
        "prefer_nhwc": str(int(optimizations.nhwc)),
        "enable_cuda_graph": str(int(optimizations.cuda_graphs)),
    }
    return [(CUDA_PROVIDER, options), CPU_PROVIDER]
