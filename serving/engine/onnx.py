"""Runs a network on a batch of images in ONNX Runtime. Knows nothing of requests, labels or gRPC."""

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.bundle import variant_file
from serving.bundle.images import Pixels
from serving.engine.base import CPU_PROVIDER, CUDA_PROVIDER, Device, Engine, Floats, Output, batch_buckets
from serving.engine.cuda import FirstRuns, quiet_logger, why_unusable
from serving.engine.cuda_graphs import CALLS, OUTPUTS, CudaGraphs
from serving.engine.sessions import Plan, Sessions, is_out_of_memory, open_onnx
from serving.errors import BundleError, DeviceUnavailable, EngineError, OutOfMemory

# A run that takes longer hangs, and must hold up no server that stops.
_LONGEST_RUN_S = 5.0

_OUTPUTS = dict.fromkeys(OUTPUTS, "tensor(float)")


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - untyped library
        *,
        threads: int,
        buckets: tuple[int, ...] = (),
        graphs: CudaGraphs | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        """Store a session.

        Args:
            session: of a network of this project.
            threads: that one run of it may use.
            buckets: batch sizes to pad to, on CUDA.
            graphs: of the session, where it can have some.
            sessions: where plainer ones come from.
        """
        self.threads = threads
        self.max_images_on_loop = 0  # where a run is known to be cheap, `load_tuned` sets more
        self._session = session
        self._buckets = buckets
        self._graphs = graphs
        self._sessions = sessions
        self._first_runs = FirstRuns()
        self._on_cuda = threading.Lock()  # held by a run: the session outlives it

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self._session.get_inputs()[0].shape[1:]
        return height, width, channels

    @property
    def plan(self) -> Plan:
        """What makes its session faster."""
        return Plan() if self._sessions is None else self._sessions.plan

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """The batch sizes that run as CUDA graphs."""
        return () if self._graphs is None else self._graphs.captured

    @classmethod
    def load(cls, model_file: Path, device: Device, *, threads: int, max_batch_size: int) -> "OnnxEngine":
        """Load an ONNX file on a device.

        Raises:
            BundleError: it is no graph of ours.
            DeviceUnavailable: the session is not on the device.
            OutOfMemory: the device has too little for it.
        """
        problem = why_unusable() if device.kind == "cuda" else ""
        if problem:
            raise DeviceUnavailable(f"{model_file} cannot run on {device.name}: {problem}")
        sessions = Sessions(
            model_file, partial(_open, model_file, device, threads), best_plan(model_file, device)
        )
        buckets = batch_buckets(device, max_batch_size)
        session = sessions.open()
        graphs = CudaGraphs(session, buckets, ("cuda", device.index)) if sessions.plan.cuda_graphs else None
        return cls(session, threads=threads, buckets=buckets, graphs=graphs, sessions=sessions)

    def run(self, images: Pixels) -> Output:
        """Run the network; see `Engine.run`."""
        count = len(images)
        try:
            probabilities, embedding = self._outputs(images)
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"the device is out of memory for {count} images: set a smaller max_batch_size, "
                    "serve fewer models, or use another GPU"
                ) from error
            raise EngineError(f"the network failed on {count} images: {error}") from error
        return Output(probabilities, embedding)[:count]

    def simplify(self, reason: str) -> bool:
        """Run without what makes the network faster and may be to blame; False where nothing is left of it.

        Not while another thread runs the network: an engine is shared only once it has proved itself.

        Args:
            reason: for the log.

        Raises:
            BundleError, OutOfMemory: no plainer session can be opened.
        """
        if self._sessions is None or not self._sessions.give_up(reason):
            return False
        with CALLS.shared():
            self._session = self._graphs = None  # before the next takes memory
        self._first_runs = FirstRuns()
        self._session = self._sessions.open()
        return True

    def close(self) -> None:
        """Free the session once a run that is under way has ended; a later run raises EngineError.

        Takes as long as another network's capture, during which no CUDA memory may be freed: not for the
        event loop.
        """
        ended = self._on_cuda.acquire(timeout=_LONGEST_RUN_S)
        with CALLS.shared():
            self._session = self._graphs = self._sessions = None
        if ended:
            self._on_cuda.release()

    def _outputs(self, images: Pixels) -> Sequence[Floats]:
        if not self._buckets:  # on a CPU
            return _run(self._session, images)
        with self._on_cuda:
            return self._outputs_on_cuda(images)

    def _outputs_on_cuda(self, images: Pixels) -> Sequence[Floats]:
        failure = self._prepare_graph(len(images))
        if failure:
            self.simplify(failure)
        if self._graphs is not None:
            return self._graphs.run(images)
        padded = self._padded(images)
        with self._first_runs(len(padded)), CALLS.shared():
            return _run(self._session, padded)

    def _prepare_graph(self, count: int) -> str:
        """Capture the graph for so many images if it is to come; why that failed, or nothing."""
        if self._graphs is None:
            return ""
        try:
            self._graphs.prepare(count)
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            if is_out_of_memory(error):
                raise
            return str(error) or type(error).__name__
        return ""

    def _padded(self, images: Pixels) -> Pixels:
        bucket = next((size for size in self._buckets if size >= len(images)), len(images))
        if bucket == len(images):
            return images
        return np.concatenate(
            [images, np.zeros((bucket - len(images), *images.shape[1:]), np.uint8)]
        )  # (B, H, W, C)


def close(engine: Engine) -> None:
    """Free what an engine holds, in a worker thread; see `OnnxEngine.close`. Others hold nothing."""
    if isinstance(engine, OnnxEngine):
        engine.close()


def _run(session: Any, images: Pixels) -> Sequence[Floats]:  # noqa: ANN401 - untyped library
    if session is None:
        raise EngineError("the network was unloaded")
    found: Sequence[Floats] = session.run(OUTPUTS, {"image": images})
    return found


def best_plan(model_file: Path, device: Device) -> Plan:
    """What makes a network faster on a device. Looks at nothing but its arguments.

    Tensor cores want NHWC, so it pays with FP16 and TF32; in full FP32 ResNet-50 was slower with it on an
    H200. As a CUDA graph it then takes 0.50, 0.85 and 0.96 of the time at 1, 8 and 64 images with FP16
    (docs/gpu.md, "bare as a graph" to "bare").
    """
    if device.kind == "cpu":
        return Plan()
    halves = model_file.name == variant_file("fp16")
    return Plan(nhwc=halves or device.allow_tf32, cuda_graphs=device.cuda_graphs)


def _open(model_file: Path, device: Device, threads: int, plan: Plan) -> Any:  # noqa: ANN401 - untyped library
    if device.kind == "cpu":
        session = open_onnx(model_file, providers(device, plan), threads=threads, device=device.name)
    else:
        with CALLS.loading, quiet_logger():
            session = open_onnx(model_file, providers(device, plan), threads=threads, device=device.name)
    if session.get_providers()[0] != device.provider:
        raise DeviceUnavailable(f"{model_file} runs on {session.get_providers()[0]}, not on {device.name}")
    inputs = {tensor.name: tensor.type for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor.type for tensor in session.get_outputs()}
    if inputs != {"image": "tensor(uint8)"} or not _OUTPUTS.items() <= outputs.items():
        raise BundleError(f"{model_file} maps {inputs} to {outputs}: not a graph of this project")
    return session


def providers(device: Device, plan: Plan) -> list[Any]:
    """ONNX Runtime's execution providers and their options, first choice first. Looks at nothing else."""
    if device.kind == "cpu":
        return [CPU_PROVIDER]
    options = {
        "device_id": str(device.index),
        # The default EXHAUSTIVE search costs hundreds of milliseconds for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # ONNX Runtime's default is "1". TF32 rounds factors to 10 bits of mantissa: in an emulation it moved
        # SqueezeNet's probabilities by 1.5e-3, and golden probabilities may move by 2e-3 only.
        "use_tf32": str(int(device.allow_tf32)),
        "prefer_nhwc": str(int(plan.nhwc)),
        "enable_cuda_graph": str(int(plan.cuda_graphs)),
    }
    return [(CUDA_PROVIDER, options), CPU_PROVIDER]
