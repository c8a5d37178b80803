"""Which of a version's files is served, and what happens if it fails its proof."""

import shutil
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from serving.bundle import MODEL_FILE, Bundle, Description, Precision, Repository, variant_file
from serving.bundle.images import Pixels
from serving.bundle.manifest import Variant
from serving.engine.base import Engine, Output
from serving.engine.cuda_graphs import CudaGraphs
from serving.engine.devices import find_cuda
from serving.engine.onnx import OnnxEngine
from serving.engine.sessions import Optimizations, SessionFactory
from serving.errors import OutOfMemory, ProofFailed
from serving.models.loader import load_network, prove
from serving.models.precision import golden_tolerance
from serving.models.versions import ProvenNetwork
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.engines import CPU
from tests.serving.log_events import LogEvents

SIZES = (1, 4)

load_engine = partial(OnnxEngine.load, device=CPU, threads=1, max_batch_size=4)


def test_a_variant_is_served_if_the_version_has_it(publish: Publish, repository: Repository) -> None:
    """With its own tolerance; for a version without that variant it is the exported file."""
    plain = publish()
    bundle = _with_variant(repository, plain, plain.model_file, tolerance=0.25)
    loaded = _load(bundle, "int8")
    assert golden_tolerance(bundle, None) == plain.manifest.golden_tolerance
    assert (loaded.precision, golden_tolerance(bundle, loaded.precision)) == ("int8", 0.25)
    assert _load(bundle, None).precision is None
    assert _load(bundle, "fp16").precision is None
    assert _load(plain, "int8").precision is None
    prove(loaded, SIZES)


def test_the_exported_file_is_served_if_the_variant_fails_its_proof(
    publish: Publish, repository: Repository, log_events: LogEvents
) -> None:
    """The variant is another network; the log has the reason."""
    plain = publish()
    wrong = _with_variant(repository, plain, publish(rotate=1).model_file, tolerance=1e-6)
    loaded = _load(wrong, "int8")
    assert loaded.precision is None
    (told,) = log_events.named("variant_unfit")
    assert (told.precision, told.version) == ("int8", wrong.version)


@pytest.mark.parametrize("rotate", [0, 1])
def test_an_optimization_that_computes_wrong_numbers_is_dropped(
    publish: Publish, repository: Repository, log_events: LogEvents, rotate: int
) -> None:
    """The version is served without it, unless the network itself is wrong."""
    wrong, plain = publish(rotate=1), publish()
    files = {True: wrong.model_file, False: publish(rotate=rotate).model_file}

    def open_session(optimizations: Optimizations) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(files[optimizations.nhwc], providers=["CPUExecutionProvider"])

    def load(file: Path) -> Engine:
        factory = SessionFactory(file, open_session, Optimizations(nhwc=True))
        return OnnxEngine(factory.open(), threads=1, factory=factory)

    if rotate:
        with pytest.raises(ProofFailed):
            load_network(plain, load, sizes=SIZES, precision=None)
    else:
        load_network(plain, load, sizes=SIZES, precision=None)
    (told,) = log_events.named("nhwc_off")
    assert "golden probabilities differ" in told.reason


def test_the_exported_file_is_served_if_fp16_overflows(
    publish: Publish, repository: Repository, log_events: LogEvents
) -> None:
    """FP16 overflows only on hardware that computes in it: there FP32 is served, with a warning."""
    plain = publish()
    bundle = _with_variant(repository, plain, plain.model_file, tolerance=0.02, precision="fp16")

    def load(file: Path) -> Engine:
        engine = load_engine(file)
        return _Overflowing(engine) if file.name == variant_file("fp16") else engine

    loaded = load_network(bundle, load, sizes=SIZES, precision="fp16")
    assert loaded.precision is None
    (told,) = log_events.named("variant_unfit")
    assert (told.levelname, told.precision) == ("WARNING", "fp16")
    assert told.reason == "3 of 3 golden examples have NaN or infinite probabilities"


def test_a_version_whose_variant_does_not_fit_into_memory_is_refused(
    publish: Publish, repository: Repository, log_events: LogEvents
) -> None:
    """The exported file is larger, so it is not tried."""
    plain = publish()
    bundle = _with_variant(repository, plain, plain.model_file, tolerance=0.02, precision="fp16")
    files = list[str]()

    def load(file: Path) -> Engine:
        files.append(file.name)
        raise OutOfMemory("cuda:0 is out of memory")

    with pytest.raises(OutOfMemory):
        load_network(bundle, load, sizes=SIZES, precision="fp16")
    assert files == [variant_file("fp16")]
    assert not log_events.records


@pytest.mark.parametrize("enough", [True, False])
def test_cuda_graphs_that_do_not_fit_into_memory_are_dropped_once(
    publish: Publish, repository: Repository, log_events: LogEvents, *, enough: bool
) -> None:
    """Single launches may fit once the first session is freed; NHWC takes no memory."""
    plain = publish()
    tried, first = list[Optimizations](), list[weakref.ref[_Exhausting]]()

    def open_session(optimizations: Optimizations) -> onnxruntime.InferenceSession:
        assert not first or first[0]() is None
        tried.append(optimizations)
        session = onnxruntime.InferenceSession(plain.model_file, providers=["CPUExecutionProvider"])
        if enough and not optimizations.cuda_graphs:
            return session
        exhausting = _Exhausting(session)
        first[:] = [weakref.ref(exhausting)]
        return exhausting

    def load(file: Path) -> Engine:
        factory = SessionFactory(file, open_session, Optimizations(nhwc=True, cuda_graphs=True))
        session = factory.open()
        graphs = CudaGraphs(session, SIZES, ("cpu", 0))
        return OnnxEngine(session, threads=1, buckets=SIZES, graphs=graphs, factory=factory)

    with nullcontext() if enough else pytest.raises(OutOfMemory):
        load_network(plain, load, sizes=SIZES, precision=None)
    assert tried == [Optimizations(nhwc=True, cuda_graphs=True), Optimizations(nhwc=True)]
    (told,) = log_events.records
    assert (told.getMessage(), "out of memory" in told.reason) == ("cuda_graphs_off", True)


@pytest.mark.skipif(find_cuda()[0] > 0, reason="this machine has a CUDA device")
@pytest.mark.parametrize(("precision", "warnings"), [("fp16", 1), ("auto", 0)])
async def test_fp16_on_a_cpu_is_a_warning(
    publish: Publish, serve: Serve, log_events: LogEvents, precision: str, warnings: int
) -> None:
    """A CPU computes an FP16 file in FP32, which proves nothing of FP16; auto does not choose it."""
    publish()
    async with serve(precision=precision):
        assert len(log_events.named("fp16_not_proven")) == warnings


@pytest.mark.parametrize("precision", ["int8", "fp32"])
async def test_a_server_serves_the_precision_of_its_settings(
    publish: Publish, repository: Repository, serve: Serve, log_events: LogEvents, precision: str
) -> None:
    """The log line of the version has the precision."""
    plain = publish()
    _with_variant(repository, plain, plain.model_file, tolerance=0.25)
    async with serve(precision=precision):
        told = await log_events.wait_for("version_loaded")
    assert (told.version, told.precision) == (2, precision)


def test_a_version_whose_variant_and_exported_file_fail_is_refused(
    publish: Publish, repository: Repository
) -> None:
    """It has no other file."""
    plain = publish()
    other = publish(rotate=1)
    wrong = _with_variant(repository, plain, other.model_file, tolerance=1e-6, exported=other.model_file)
    with pytest.raises(ProofFailed):
        _load(wrong, "int8")


def test_a_network_that_is_refused_is_closed_where_it_was_loaded(
    publish: Publish, repository: Repository
) -> None:
    """Otherwise its session would be freed with the error, on the event loop, perhaps during a capture."""
    plain = publish()
    wrong = _with_variant(repository, plain, publish(rotate=1).model_file, tolerance=1e-6)
    engines = list[OnnxEngine]()

    def load(file: Path) -> Engine:
        engines.append(load_engine(file))
        return engines[-1]

    load_network(wrong, load, sizes=SIZES, precision="int8")
    assert [engine._session is None for engine in engines] == [True, False]


def _load(bundle: Bundle, precision: Precision | None) -> ProvenNetwork:
    return load_network(bundle, load_engine, sizes=SIZES, precision=precision)


class _Overflowing:
    """A network whose sums overflow."""

    max_images_on_loop = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, images: Pixels) -> Output:
        output = self._engine.run(images)
        return Output(np.full_like(output.probabilities, np.nan), output.embedding)


class _Exhausting:
    """A session that never has enough memory."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.get_inputs = session.get_inputs

    def run(self, *_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")


def _with_variant(
    repository: Repository,
    source: Bundle,
    variant: Path,
    *,
    tolerance: float,
    exported: Path | None = None,
    precision: Precision = "int8",
) -> Bundle:
    """Publish a version again, with a variant in another precision."""

    def write(folder: Path) -> Description:
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        shutil.copy(exported or source.model_file, folder / MODEL_FILE)
        shutil.copy(variant, folder / variant_file(precision))
        manifest = source.manifest
        told = {name: getattr(manifest, name) for name in Description.model_fields}
        form = Variant(evaluation=manifest.evaluation, same_labels=1.0, golden_tolerance=tolerance)
        return Description(**{**told, "variants": {precision: form}})

    return repository.publish(source.model, write)
