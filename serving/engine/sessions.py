"""Opens an ONNX file in ONNX Runtime as the fastest session that works for it. Knows no images."""

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from serving.errors import BundleError, OutOfMemory

_ORT_ERRORS = 3
# ONNX Runtime has no exception of its own for it. In turn: its arena (bfc_arena.cc), CUDA (2 is
# cudaErrorMemoryAllocation), cuBLAS and cuDNN, and C++.
_OUT_OF_MEMORY = re.compile(
    r"failed to allocate memory|BFCArena::AllocateRaw|is smaller than requested bytes"
    r"|out of memory|CUDA failure 2:|OUT_OF_MEMORY"
    r"|STATUS_ALLOC_FAILED|ALLOCATION_FAILED|std::bad_alloc",
    re.IGNORECASE,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes a network faster on CUDA, and may not work for every network."""

    nhwc: bool = False  # convolutions with channels last, as tensor cores want them
    cuda_graphs: bool = False  # one launch for all kernels of a batch

    def fallbacks(self) -> list["Plan"]:
        """This plan, and plainer ones in the order in which to try them."""
        return list(dict.fromkeys((self, replace(self, cuda_graphs=False), Plan())))


class Sessions:
    """Opens one file again and again, each time as the best plan that is left says."""

    def __init__(self, model_file: Path, open_session: Callable[[Plan], Any], plan: Plan) -> None:
        """Store how.

        Args:
            model_file: for the log.
            open_session: by a plan. It raises BundleError where it cannot.
            plan: the best one.
        """
        self._model_file = model_file
        self._open_session = open_session
        self._plans = plan.fallbacks()

    @property
    def plan(self) -> Plan:
        """The best one that has not failed."""
        return self._plans[0]

    def open(self) -> Any:  # noqa: ANN401 - untyped library
        """Open a session; where that fails, a plainer one.

        Raises:
            BundleError: the plainest fails too.
        """
        best, reason = self.plan, ""
        while True:
            try:
                session = self._open_session(self.plan)
            except BundleError as error:
                if len(self._plans) == 1:
                    raise
                reason = reason or str(error)
                self._plans.pop(0)
            else:
                self._tell(best, reason)
                return session

    def give_up(self, reason: str) -> bool:
        """Turn to the next plan; False where this is the plainest."""
        if len(self._plans) == 1:
            return False
        self._tell(self._plans.pop(0), reason)
        return True

    def _tell(self, before: Plan, reason: str) -> None:
        after = asdict(self.plan)
        for name in (name for name, wanted in asdict(before).items() if wanted and not after[name]):
            _log.warning(f"{name}_off", extra={"file": str(self._model_file), "reason": reason})


def open_onnx(model_file: Path, providers: list[Any], *, threads: int, device: str) -> Any:  # noqa: ANN401 - untyped library
    """Open a session.

    Args:
        model_file: an ONNX file.
        providers: ONNX Runtime's execution providers and their options.
        threads: that one run may use.
        device: its name, for messages.

    Raises:
        BundleError: ONNX Runtime does not load it.
        OutOfMemory: the device has too little for it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_ERRORS
    # Spinning threads burn a core between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # With a fallback it prints what failed to stdout, and starts over on the CPU.
        return onnxruntime.InferenceSession(
            model_file, sess_options=options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"{device} is out of memory for {model_file}: serve fewer models, or use another GPU"
            ) from error
        raise BundleError(f"{model_file} cannot be loaded: {error}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of ONNX Runtime, CUDA, cuBLAS, cuDNN or numpy says that memory was too little."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None
