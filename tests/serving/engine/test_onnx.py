"""ONNX Runtime sessions, their options, and batch buckets."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import serving.engine.onnx as engine_module
from serving.bundle import Bundle, variant_file
from serving.bundle.images import Pixels
from serving.engine.base import Device, batch_buckets
from serving.engine.devices import choose_device, find_cuda, find_device
from serving.engine.memory_errors import is_out_of_memory
from serving.engine.onnx import OnnxEngine, best_optimizations, providers
from serving.engine.proof import warm_and_prove
from serving.engine.sessions import Optimizations
from serving.errors import BundleError, DeviceUnavailable, EngineError, OutOfMemory
from serving.models.loader import load_network, prove
from serving.settings import ServerSettings
from tests.colours import Publish
from tests.serving.engines import CPU
from tests.serving.log_events import LogEvents

CUDA = Device("cuda", 0, "tests")


GROWING = """
import resource
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime

from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def timers():
    return [each for each in threading.enumerate() if isinstance(each, threading.Timer)]

engine = OnnxEngine.load(Path(sys.argv[1]), Device("cpu", 0, "tests"), threads=1, max_batch_size=8)
engine = OnnxEngine(engine._session, threads=1, shrink_after_s=float(sys.argv[2]))
engine.run(np.zeros((1, 8, 8, 3), np.uint8))
before_mib = resident_mib()
for _ in range(3):
    engine.run(np.zeros((100_000, 8, 8, 3), np.uint8))
grown_mib = resident_mib()
if float(sys.argv[2]) < 60:
    while waiting := timers():
        waiting[0].join()
else:
    engine.release_memory()
print(grown_mib - before_mib, resident_mib() - before_mib)
"""


EXHAUSTING = """
import resource
import sys
from pathlib import Path

import numpy as np

from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from serving.errors import OutOfMemory

engine = OnnxEngine.load(Path(sys.argv[1]), Device("cpu", 0, "tests"), threads=1, max_batch_size=8)
few, many = (np.zeros((count, 8, 8, 3), np.uint8) for count in (4, 100_000))
print(len(engine.run(few).probabilities))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20,) * 2)
try:
    engine.run(many)
except OutOfMemory as error:
    print(f"OutOfMemory: {error}")
print(len(engine.run(few).probabilities))
"""


class TestProviders:
    """Options of execution providers."""

    def test_the_cpu_has_no_options(self) -> None:
        """There is one CPU, and it always computes in FP32."""
        assert providers(CPU, Optimizations()) == ["CPUExecutionProvider"]

    @pytest.mark.parametrize(
        ("requested", "index"), [("auto", "0"), ("cuda", "0"), ("cuda:0", "0"), ("cuda:1", "1")]
    )
    def test_the_number_of_the_device_reaches_onnx_runtime(self, requested: str, index: str) -> None:
        """cuda:1 runs on no other device."""
        (name, options), fallback = providers(_device(device=requested), Optimizations())
        assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        assert options["device_id"] == index

    def test_fp32_networks_run_in_fp32_unless_tf32_is_allowed(self) -> None:
        """ONNX Runtime's own default is TF32."""
        assert providers(_device(device="cuda"), Optimizations())[0][1]["use_tf32"] == "0"
        assert providers(_device(device="cuda", allow_tf32=True), Optimizations())[0][1]["use_tf32"] == "1"

    @pytest.mark.parametrize(
        ("file", "device", "nhwc"),
        [
            ("model.fp16.onnx", CUDA, True),
            ("model.onnx", CUDA, False),
            ("model.onnx", replace(CUDA, allow_tf32=True), True),
            ("model.fp16.onnx", CPU, False),
        ],
    )
    def test_channels_come_last_if_tensor_cores_compute(
        self, file: str, device: Device, *, nhwc: bool
    ) -> None:
        """FP32 does not use them, and is slower that way."""
        optimizations = best_optimizations(Path("models") / file, device)
        assert optimizations.nhwc == nhwc
        if device.kind == "cuda":
            assert providers(device, optimizations)[0][1]["prefer_nhwc"] == str(int(nhwc))

    def test_cuda_graphs_are_captured_unless_they_are_turned_off(self) -> None:
        """A CPU has no graphs."""
        file = Path("model.onnx")
        for wanted in (True, False):
            device = _device(device="cuda", cuda_graphs=wanted)
            optimizations = best_optimizations(file, device)
            assert optimizations.cuda_graphs == wanted
            assert providers(device, optimizations)[0][1]["enable_cuda_graph"] == str(int(wanted))
        assert not best_optimizations(file, CPU).cuda_graphs


class TestBatchBuckets:
    """Sizes that batches are padded to."""

    @pytest.mark.parametrize(
        ("largest", "buckets"),
        [(1, (1,)), (2, (1, 2)), (32, (1, 2, 4, 8, 16, 32)), (48, (1, 2, 4, 8, 16, 32, 48))],
    )
    def test_on_cuda_they_are_powers_of_two_up_to_the_largest_batch(
        self, largest: int, buckets: tuple[int, ...]
    ) -> None:
        """Few enough to warm each; the largest batch needs no padding."""
        assert batch_buckets(CUDA, largest) == buckets

    def test_on_a_cpu_there_are_none(self) -> None:
        """A CPU needs no search for new shapes."""
        assert batch_buckets(CPU, 32) == ()

    @given(largest=st.integers(1, 1024), count=st.integers(1, 1024))
    def test_every_batch_fits_a_bucket_less_than_twice_its_size(self, largest: int, count: int) -> None:
        """Padding never doubles the work."""
        count = min(count, largest)
        bucket = next(size for size in batch_buckets(CUDA, largest) if size >= count)
        assert count <= bucket < 2 * count or bucket == count == 1


class TestOnnxEngine:
    """A real session of ONNX Runtime."""

    def test_it_returns_probabilities_and_embeddings_row_by_row(self, publish: Publish) -> None:
        """(N, K) probabilities that sum to 1 and (N, D) features, both float32."""
        output = _load(publish().model_file).run(_noise(5))
        assert output.probabilities.shape == output.embedding.shape == (5, 3)
        assert output.probabilities.dtype == output.embedding.dtype == np.float32
        np.testing.assert_allclose(output.probabilities.sum(axis=1), 1, rtol=1e-6)

    def test_padding_to_buckets_changes_no_row(self, publish: Publish) -> None:
        """A padded batch returns as many rows as images, the same as without padding."""
        file = publish().model_file
        plain = _load(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        padded = OnnxEngine(session, threads=1, buckets=(1, 4, 8))
        for count in range(1, 9):
            images = _noise(count)
            expected, found = plain.run(images), padded.run(images)
            assert found.probabilities.shape == (count, 3)
            np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-6)
            np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-6)

    @pytest.mark.parametrize("content", [b"", b"junk", b"\x00" * 1000])
    def test_a_file_that_is_not_a_network_is_refused_by_name(self, tmp_path: Path, content: bytes) -> None:
        """The message names the file."""
        file = tmp_path / "model.onnx"
        file.write_bytes(content)
        with pytest.raises(BundleError, match=f"{file} cannot be loaded"):
            _load(file)

    def test_a_file_that_is_missing_is_refused(self, tmp_path: Path) -> None:
        """The error is the same kind."""
        with pytest.raises(BundleError, match="cannot be loaded"):
            _load(tmp_path / "model.onnx")

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
    @pytest.mark.parametrize("shrink_after_s", [0.05, 3600])
    def test_the_memory_of_large_batches_is_returned(self, publish: Publish, shrink_after_s: float) -> None:
        """Some time after the last one, or when `release_memory` is called."""
        done = subprocess.run(
            [sys.executable, "-c", GROWING, str(publish().model_file), str(shrink_after_s)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        grown_mib, kept_mib = map(float, done.stdout.split())
        assert grown_mib > 60
        assert kept_mib < grown_mib / 2

    def test_a_network_with_another_input_type_is_refused(self, publish: Publish) -> None:
        """The message has the type."""
        file = _changed(publish(), lambda graph: _set_input_type(graph, TensorProto.FLOAT))
        with pytest.raises(BundleError, match=r"'image': 'tensor\(float\)'.*not a network of this project"):
            _load(file)

    def test_a_network_with_another_input_name_is_refused(self, publish: Publish) -> None:
        """The input must be called image."""

        def rename(graph: onnx.GraphProto) -> None:
            graph.input[0].name = graph.node[0].input[0] = "x"

        with pytest.raises(BundleError, match=r"'x': 'tensor\(uint8\)'.*not a network of this project"):
            _load(_changed(publish(), rename))

    def test_a_network_without_an_embedding_is_refused(self, publish: Publish) -> None:
        """Both outputs are required."""
        file = _changed(publish(), lambda graph: graph.output.pop(1))
        with pytest.raises(
            BundleError, match=r"{'probabilities': 'tensor\(float\)'}: not a network of this project"
        ):
            _load(file)

    def test_a_network_with_double_outputs_is_refused(self, publish: Publish) -> None:
        """Outputs are sent unchanged, and declared as FP32."""

        def widen(graph: onnx.GraphProto) -> None:
            name = graph.output[0].name
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}_32"], [name], to=TensorProto.DOUBLE))
            next(node for node in graph.node if name in node.output).output[:] = [f"{name}_32"]
            graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

        with pytest.raises(BundleError, match=r"tensor\(double\).*not a network of this project"):
            _load(_changed(publish(), widen))

    def test_a_failing_run_is_an_engine_error_with_the_number_of_images(self, publish: Publish) -> None:
        """All errors of ONNX Runtime become one kind of error."""
        with pytest.raises(EngineError, match="the network failed on 2 images"):
            _load(publish().model_file).run(np.zeros((2, 5, 5, 1), np.uint8))

    def test_a_provider_that_fails_is_not_replaced_by_another(
        self, publish: Publish, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """ONNX Runtime would print the reason to stdout and run on the CPU with other options."""
        broken = [("CPUExecutionProvider", "options that are no dictionary")]
        monkeypatch.setattr(engine_module, "providers", lambda _device, _plan: broken)
        with pytest.raises(BundleError, match="cannot be loaded: 'providers' values"):
            _load(publish().model_file)
        assert capfd.readouterr().out == ""

    @pytest.mark.skipif(find_cuda()[0] > 0, reason="this machine has a CUDA device")
    def test_a_network_for_cuda_is_refused_if_libraries_are_missing(self, publish: Publish) -> None:
        """ONNX Runtime would run it on the CPU. The message names a library."""
        with pytest.raises(DeviceUnavailable, match=r"cannot run on cuda:0: .*libcuda\.so\.1"):
            OnnxEngine.load(publish().model_file, CUDA, threads=1, max_batch_size=4)

    @pytest.mark.skipif(find_cuda()[0] > 0, reason="this machine has a CUDA device")
    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_a_session_that_fell_back_to_the_cpu_is_refused(
        self, publish: Publish, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ONNX Runtime falls back silently; this project never does."""
        monkeypatch.setattr(engine_module, "why_unusable", lambda: "")
        with pytest.raises(DeviceUnavailable, match=r"runs on CPUExecutionProvider, not on cuda:0"):
            OnnxEngine.load(publish().model_file, CUDA, threads=1, max_batch_size=4)


class TestOutOfMemory:
    """The memory of a device is shared: the next run may succeed."""

    @pytest.mark.parametrize(
        "message",
        [
            "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, Stream*) ",
            "Conv node. Status Message: Failed to allocate memory for requested buffer of size 939524096",
            "Available memory of 1024 is smaller than requested bytes of 4096",
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);",
            "CUDA out of memory",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);",
            "CUDNN failure 5003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "Exception during initialization: std::bad_alloc",
        ],
    )
    def test_a_run_fails_with_what_to_do_and_the_next_one_runs(self, message: str, publish: Publish) -> None:
        """The message has the number of images, and no text of ONNX Runtime."""
        session = onnxruntime.InferenceSession(publish().model_file, providers=["CPUExecutionProvider"])
        engine = OnnxEngine(_Exhausted(session, message), threads=1)
        with pytest.raises(OutOfMemory) as raised:
            engine.run(_noise(3))
        assert str(raised.value) == (
            "the device is out of memory for 3 images: set a smaller max_batch_size, serve fewer models, "
            "or use another GPU"
        )
        assert len(engine.run(_noise(2)).probabilities) == 2
        engine.close()

    @pytest.mark.parametrize(
        "message", ["CUDA failure 209: no kernel image is available", "Invalid rank for input: image", ""]
    )
    def test_other_failures_are_not_out_of_memory(self, message: str) -> None:
        """They are failures of the network, which must be proven again."""
        assert not is_out_of_memory(RuntimeError(message))

    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(MemoryError(), id="numpy, to pad a batch"),
            pytest.param(OSError(errno.ENOMEM, "Cannot allocate memory"), id="to share memory"),
            pytest.param(RuntimeError("can't start new thread"), id="for the stack of a thread"),
        ],
    )
    def test_other_memory_is_memory_too(self, error: Exception) -> None:
        """Not only the network's."""
        assert is_out_of_memory(error)

    def test_a_load_is_refused_with_what_to_do(
        self, publish: Publish, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message has the file and the device."""

        def fail(*_args: object, **_options: object) -> None:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

        file = publish().model_file
        monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
        with pytest.raises(OutOfMemory, match=f"^cpu is out of memory for {file}: serve fewer models"):
            _load(file)

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
    def test_a_real_one_fails_a_large_batch_and_not_a_small_one(self, publish: Publish) -> None:
        """In a process that may take 20 MiB more, 100,000 images fail and 4 run, before and after."""
        done = subprocess.run(
            [sys.executable, "-c", EXHAUSTING, str(publish().model_file)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        before, failed, after = done.stdout.splitlines() or pytest.fail(done.stderr)
        assert (before, after) == ("4", "4")
        assert failed.startswith("OutOfMemory: the device is out of memory for 100,000 images: set a smaller")


@pytest.mark.gpu
class TestOnCuda:
    """The engine on a GPU."""

    @pytest.fixture(autouse=True)
    def _gpu(self) -> None:
        count, why_none = find_cuda()
        if not count:
            pytest.skip(f"no CUDA: {why_none}")

    def test_the_golden_examples_are_reproduced(self, publish: Publish) -> None:
        """The network is warmed and proven on cuda:0, with padding."""
        bundle = publish()
        device = choose_device("cuda", *find_cuda())
        engine = OnnxEngine.load(bundle.model_file, device, threads=1, max_batch_size=8)
        golden = bundle.golden()
        warm_and_prove(
            engine, golden, tolerance=bundle.manifest.golden_tolerance, sizes=batch_buckets(device, 8)
        )
        found = engine.run(golden.images).probabilities
        np.testing.assert_allclose(found, golden.probabilities, atol=bundle.manifest.golden_tolerance)

    @pytest.mark.parametrize("allow_tf32", [False, True])
    def test_the_session_has_the_options_that_it_was_given(
        self, publish: Publish, *, allow_tf32: bool
    ) -> None:
        """As ONNX Runtime reports them."""
        device = find_device("cuda:0", allow_tf32=allow_tf32)
        engine = OnnxEngine.load(publish().model_file, device, threads=1, max_batch_size=8)
        options = engine._session.get_provider_options()["CUDAExecutionProvider"]
        assert (options["device_id"], options["use_tf32"]) == ("0", str(int(allow_tf32)))

    def test_a_batch_that_is_too_large_fails_and_the_next_one_runs(
        self, publish: Publish, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The images alone take 192 MB, and the session may take 64 MiB."""

        def limited(device: Device, optimizations: Optimizations) -> list[Any]:
            (name, options), cpu = providers(device, optimizations)
            return [(name, options | {"gpu_mem_limit": str(64 * 2**20)}), cpu]

        monkeypatch.setattr(engine_module, "providers", limited)
        engine = OnnxEngine.load(publish().model_file, CUDA, threads=1, max_batch_size=8)
        with pytest.raises(OutOfMemory, match="out of memory for 1,000,000 images"):
            engine.run(np.zeros((1_000_000, 8, 8, 3), np.uint8))
        assert len(engine.run(_noise(4)).probabilities) == 4

    def test_replayed_graphs_compute_what_plain_sessions_do(self, publish: Publish, tmp_path: Path) -> None:
        """Every number of images, several rounds of different ones, from two threads at once."""
        file = _convolution(tmp_path / "model.onnx", np.float32)
        for model_file in (publish().model_file, file):
            graphs = OnnxEngine.load(model_file, CUDA, threads=1, max_batch_size=8)
            plain = OnnxEngine.load(model_file, replace(CUDA, cuda_graphs=False), threads=1, max_batch_size=8)
            compare = partial(_compare_all_counts, graphs, plain, 1e-4)
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(compare, (1, 2)))
            assert graphs.captured_sizes == (1, 2, 4, 8)
            assert plain.captured_sizes == ()

    def test_a_version_is_served_by_the_graphs_that_it_was_proven_with(
        self, publish: Publish, log_events: LogEvents
    ) -> None:
        """Each size has its graph once the version is loaded, and no fallback is logged."""
        bundle = publish()
        load = partial(OnnxEngine.load, device=CUDA, threads=1, max_batch_size=8)
        sizes = batch_buckets(CUDA, 8)
        loaded = load_network(bundle, load, sizes=sizes, precision=None)
        assert isinstance(loaded.engine, OnnxEngine)
        assert loaded.engine.captured_sizes == sizes
        prove(loaded, sizes)
        assert not log_events.records

    def test_versions_load_while_others_answer(self, publish: Publish) -> None:
        """A capture does not overlap with runs of another session."""
        file = publish().model_file
        first = OnnxEngine.load(file, CUDA, threads=1, max_batch_size=8)
        expected = first.run(_noise(5)).probabilities
        stop = threading.Event()

        def answer() -> int:
            runs = 0
            while not stop.is_set() or not runs:
                np.testing.assert_allclose(first.run(_noise(5)).probabilities, expected, atol=1e-5)
                runs += 1
            return runs

        with ThreadPoolExecutor(1) as threads:
            answering = threads.submit(answer)
            try:
                for _ in range(3):
                    engine = OnnxEngine.load(file, CUDA, threads=1, max_batch_size=8)
                    for size in (1, 2, 4, 8):
                        engine.run(_noise(size))
                    assert engine.captured_sizes == (1, 2, 4, 8)
            finally:
                stop.set()
            assert answering.result(timeout=60)

    @pytest.mark.parametrize("cuda_graphs", [False, True])
    def test_fp16_with_channels_last_answers_as_the_cpu_does(
        self, tmp_path: Path, *, cuda_graphs: bool
    ) -> None:
        """Within the rounding of FP16."""
        device = replace(CUDA, cuda_graphs=cuda_graphs)
        half = _convolution(tmp_path / variant_file("fp16"), np.float16)
        cuda = OnnxEngine.load(half, device, threads=1, max_batch_size=8)
        options = cuda._session.get_provider_options()["CUDAExecutionProvider"]
        assert options["prefer_nhwc"] == "1"
        _compare_all_counts(cuda, _load(_convolution(tmp_path / "model.onnx", np.float32)), 2e-2, 1)
        assert cuda.captured_sizes == ((1, 2, 4, 8) if cuda_graphs else ())

    def test_every_batch_size_answers_as_the_cpu_does(self, publish: Publish) -> None:
        """Rows do not depend on the padding or the device."""
        file = publish().model_file
        cuda, cpu = OnnxEngine.load(file, CUDA, threads=1, max_batch_size=8), _load(file)
        for count in range(1, 9):
            images = _noise(count)
            np.testing.assert_allclose(
                cuda.run(images).probabilities, cpu.run(images).probabilities, atol=1e-4
            )


class _Exhausted:
    """A session whose first run fails."""

    def __init__(self, session: onnxruntime.InferenceSession, message: str) -> None:
        self._session = session
        self._messages = [message]

    def run(self, *args: object) -> object:
        if self._messages:
            raise RuntimeError(self._messages.pop())
        return self._session.run(*args)


def _device(**options: Any) -> Device:
    """The device of a server with these settings, on a machine with two GPUs."""
    settings = ServerSettings(repository=Path(), **options)
    return find_device(
        settings.device,
        allow_tf32=settings.allow_tf32,
        cuda_graphs=settings.cuda_graphs,
        find=lambda: (2, ""),
    )


def _compare_all_counts(found: OnnxEngine, expected: OnnxEngine, atol: float, seed: int) -> None:
    for count in (*range(1, 9), *range(8, 0, -1)) * 3:
        images = _noise(count, seed := seed + 10)
        for rows in ("probabilities", "embedding"):
            one, other = (getattr(engine.run(images), rows) for engine in (found, expected))
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=atol)


def _convolution(file: Path, kind: type[np.floating[Any]]) -> Path:
    """A convolution, its channels' means as the embedding, and a softmax; products in this precision."""
    random = np.random.default_rng(0)
    weights = {
        "filters": random.normal(0, 1 / 255, (16, 3, 3, 3)).astype(kind),
        "classes": random.normal(0, 0.3, (16, 3)).astype(kind),
        "sides": np.array([2, 3]),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["image"], ["pixels"], to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))),
        make("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        make("Conv", ["planes", "filters"], ["convolved"], pads=[1, 1, 1, 1]),
        make("Relu", ["convolved"], ["rectified"]),
        make("ReduceMean", ["rectified", "sides"], ["means"], keepdims=0),
        make("MatMul", ["means", "classes"], ["scores"]),
        make("Cast", ["means"], ["embedding"], to=TensorProto.FLOAT),
        make("Cast", ["scores"], ["logits"], to=TensorProto.FLOAT),
        make("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "convolution",
        [value("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [
            value("probabilities", TensorProto.FLOAT, ["batch", 3]),
            value("embedding", TensorProto.FLOAT, ["batch", 16]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), file
    )
    return file


def _load(file: Path) -> OnnxEngine:
    return OnnxEngine.load(file, CPU, threads=1, max_batch_size=8)


def _noise(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng((count, seed)).integers(0, 256, (count, 8, 8, 3), np.uint8)  # (N, H, W, C)


def _changed(bundle: Bundle, change: Callable[[onnx.GraphProto], object]) -> Path:
    model = onnx.load(bundle.model_file)
    change(model.graph)
    file = bundle.folder.parent / "changed.onnx"
    onnx.save(model, file)
    return file


def _set_input_type(graph: onnx.GraphProto, kind: int) -> None:
    graph.input[0].type.tensor_type.elem_type = kind
