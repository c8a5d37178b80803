"""Opens an ONNX file in ONNX Runtime with the optimizations that work for it."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

from serving.engine.base import CPU_PROVIDER
from serving.engine.memory_errors import is_out_of_memory
from serving.errors import BundleError, OutOfMemory

_ORT_ERRORS = 3
_AS_REQUESTED = 1  # arena_extend_strategy

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Optimizations:
    """Make networks faster on CUDA, but do not work for every network."""

    nhwc: bool = False  # channels-last convolutions, which tensor cores prefer
    cuda_graphs: bool = False  # one launch for all kernels of a batch

    def fallbacks(self) -> list["Optimizations"]:
        """Return combinations to try, in order: these optimizations first, then fewer."""
        return list(dict.fromkeys((self, replace(self, cuda_graphs=False), Optimizations())))


class SessionFactory:
    """Opens sessions of one file, with the best optimizations that have not failed yet."""

    def __init__(
        self, model_file: Path, open_session: Callable[[Optimizations], Any], optimizations: Optimizations
    ) -> None:
        """Store the options.

        Args:
            model_file: file name for the log.
            open_session: opens a session with optimizations, or raises BundleError.
            optimizations: the first to try.
        """
        self._model_file = model_file
        self._open_session = open_session
        self._fallbacks = optimizations.fallbacks()

    @property
    def optimizations(self) -> Optimizations:
        """The best optimizations that have not failed yet."""
        return self._fallbacks[0]

    def open(self) -> Any:  # noqa: ANN401 - untyped library
        """Open a session. If that fails, retry with fewer optimizations.

        Raises:
            BundleError: it also fails without optimizations.
        """
        best, reason = self.optimizations, ""
        while True:
            try:
                session = self._open_session(self.optimizations)
            except BundleError as error:
                if len(self._fallbacks) == 1:
                    raise
                reason = reason or str(error)
                self._fallbacks.pop(0)
            else:
                self._log_dropped(best, reason)
                return session

    def drop_optimization(self, reason: str) -> bool:
        """Use fewer optimizations from now on; return False if none is left to drop."""
        if len(self._fallbacks) == 1:
            return False
        self._log_dropped(self._fallbacks.pop(0), reason)
        return True

    def _log_dropped(self, before: Optimizations, reason: str) -> None:
        after = asdict(self.optimizations)
        for name in (name for name, wanted in asdict(before).items() if wanted and not after[name]):
            _log.warning(f"{name}_off", extra={"file": str(self._model_file), "reason": reason})


def open_onnx(model_file: Path, providers: list[Any], *, threads: int, device: str) -> Any:  # noqa: ANN401 - untyped library
    """Open a session.

    Args:
        model_file: an ONNX file.
        providers: ONNX Runtime's execution providers and their options.
        threads: threads per run.
        device: device name for messages.

    Raises:
        BundleError: ONNX Runtime cannot load the file.
        OutOfMemory: the device has too little memory for the network.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_ERRORS
    # Spinning threads would keep a core busy between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if providers == [CPU_PROVIDER]:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        # With fallback, ONNX Runtime prints the failure to stdout and starts again on the CPU.
        return onnxruntime.InferenceSession(
            model_file, sess_options=options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"{device} is out of memory for {model_file}: serve fewer models, or use another GPU"
            ) from error
        raise BundleError(f"{model_file} cannot be loaded: {error}") from error


@cache
def _share_arena() -> None:
    """Create one arena for all sessions on the CPU. It grows by what is needed, not by powers of two.

    With one arena per session, each would keep its first 1 MiB for good.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    default = -1
    growth = {
        "max_mem": 0,
        "arena_extend_strategy": _AS_REQUESTED,
        "initial_chunk_size_bytes": default,
        "max_dead_bytes_per_chunk": default,
    }
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(growth))
