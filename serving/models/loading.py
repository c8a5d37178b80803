"""From a version's files to an engine that has proved itself: which file, warm-up, golden examples.

A version may carry its network in other precisions beside the exported file. The one that suits the device is
taken where it loads and keeps its own tolerance; else the exported file is.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import MODEL_FILE, Bundle, Golden, Precision, Repository, variant_file
from serving.engine.base import Device, Engine
from serving.engine.onnx import OnnxEngine, close
from serving.engine.proof import warm_and_prove
from serving.engine.sessions import Plan
from serving.errors import BundleError, EngineError, OutOfMemory, ProofFailed

# What makes INT8 pay on a CPU: dot products of bytes, by their names in /proc/cpuinfo.
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that is warm and gives the golden probabilities."""

    bundle: Bundle
    engine: Engine
    precision: Precision | None  # None: the exported file, float32

    @property
    def tolerance(self) -> float:
        """How far a golden probability may be off."""
        return _tolerance(self.bundle, self.precision)


def choose_precision(requested: str, device: Device, cpu_flags: frozenset[str]) -> Precision | None:
    """Which variant to take where a version has it. Looks at nothing but its arguments.

    Args:
        requested: auto, fp32, int8 or fp16.
        device: where networks run.
        cpu_flags: what its CPU can do, by the names in /proc/cpuinfo.
    """
    if requested == "int8":
        return "int8"
    if requested == "fp16" or (requested == "auto" and device.kind == "cuda"):
        return "fp16"
    return "int8" if requested == "auto" and cpu_flags & _INT8_FLAGS else None


def read_cpu_flags() -> frozenset[str]:
    """What this machine's CPU can do; nothing where /proc does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split()[2:] for line in lines if line.startswith("flags")), ()))


def load_version(
    repository: Repository,
    model: str,
    version: int,
    load_engine: Callable[[Path], Engine],
    *,
    sizes: tuple[int, ...],
    precision: Precision | None,
) -> Loaded:
    """Read, load, warm and prove a version, in a worker thread.

    Args:
        repository: where it lies.
        model: its name.
        version: its number.
        load_engine: from an ONNX file to an engine.
        sizes: batch sizes to warm.
        precision: the variant to take if the version has it.

    Raises:
        BundleError: its files cannot be trusted, or the network does not reproduce its golden examples.
        EngineError: the network failed.
        OutOfMemory: the device has too little for it.
        DeviceUnavailable: as `load_engine`.
    """
    bundle = repository.read(model, version)
    if precision is not None and precision in bundle.manifest.variants:
        try:
            return _load(bundle, load_engine, sizes, precision)
        except OutOfMemory:  # the exported file is larger
            raise
        except (BundleError, EngineError) as error:
            told = {"model": model, "version": version, "precision": precision, "reason": str(error)}
            _log.warning("variant_unfit", extra=told)
    return _load(bundle, load_engine, sizes, None)


def prove(loaded: Loaded, sizes: tuple[int, ...]) -> None:
    """Let a loaded version show again that it gives the golden probabilities.

    Raises:
        BundleError: its golden examples cannot be read, or do not come out (ProofFailed).
        EngineError: the network failed.
    """
    warm_and_prove(loaded.engine, loaded.bundle.golden(), tolerance=loaded.tolerance, sizes=sizes)


def _load(
    bundle: Bundle, load_engine: Callable[[Path], Engine], sizes: tuple[int, ...], precision: Precision | None
) -> Loaded:
    file = bundle.folder / (MODEL_FILE if precision is None else variant_file(precision))
    golden, tolerance = bundle.golden(), _tolerance(bundle, precision)
    engine = load_engine(file)
    try:
        if isinstance(engine, OnnxEngine):
            while reason := _why_unfit(engine, golden, tolerance, sizes):
                engine.simplify(reason)
        else:
            warm_and_prove(engine, golden, tolerance=tolerance, sizes=sizes)
        return Loaded(bundle, engine, precision)
    except BaseException:
        close(engine)
        raise


def _why_unfit(engine: OnnxEngine, golden: Golden, tolerance: float, sizes: tuple[int, ...]) -> str:
    """Why an engine does not prove itself, where a plainer plan may mend that; nothing where it does.

    The error itself is not returned: its traceback would keep the session, and the memory, that failed.
    """
    try:
        warm_and_prove(engine, golden, tolerance=tolerance, sizes=sizes)
    except (ProofFailed, EngineError) as error:
        # Graphs take memory of their own; any plan but the plainest may give wrong numbers.
        mendable = engine.plan.cuda_graphs if isinstance(error, OutOfMemory) else engine.plan != Plan()
        if not mendable:
            raise
        return str(error)
    return ""


def _tolerance(bundle: Bundle, precision: Precision | None) -> float:
    manifest = bundle.manifest
    return manifest.golden_tolerance if precision is None else manifest.variants[precision].golden_tolerance
