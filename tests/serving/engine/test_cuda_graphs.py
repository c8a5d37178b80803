"""Graphs of batches, with a session on the CPU instead of CUDA; test_onnx.py has real graphs."""

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import serving.engine.onnx as engine_module
from serving.bundle.images import Pixels
from serving.engine.base import Floats
from serving.engine.cuda_graphs import CUDA_CALLS, CudaCalls, CudaGraphs
from serving.engine.onnx import OnnxEngine
from serving.engine.sessions import Optimizations, SessionFactory
from serving.errors import EngineError, OutOfMemory
from tests.colours import Publish
from tests.serving.log_events import LogEvents

SIZES = (1, 4, 8)
PLAIN = "-1"


def _nothing() -> None:
    pass


class Recorded:
    """A real session on the CPU. It runs instead of replaying, and records threads and graphs."""

    def __init__(self, file: Path) -> None:
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.runs: list[tuple[str, int]] = []  # id of the graph, thread
        self.on_graph = _nothing  # what happens when one runs, before it does
        self.stale = False  # whether graphs keep what they gave first

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        """Like the session."""
        return self._session.get_inputs()

    def io_binding(self) -> onnxruntime.IOBinding:
        """Like the session."""
        return self._session.io_binding()

    def run(
        self, names: Sequence[str], feed: dict[str, Pixels], options: onnxruntime.RunOptions
    ) -> list[Floats]:
        """Run without a graph."""
        self._note(options)
        return self._session.run(names, feed, options)

    def run_with_iobinding(self, binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
        """Run what would be a graph."""
        self._note(options)
        self.on_graph()
        if not self.stale:
            self._session.run_with_iobinding(binding, options)

    def graph_ids(self) -> list[str]:
        """Graph ids of all runs so far, in order."""
        return [graph for graph, _ in self.runs]

    def _note(self, options: onnxruntime.RunOptions) -> None:
        self.runs.append((options.get_run_config_entry("gpu_graph_id"), threading.get_ident()))


@pytest.fixture
def session(publish: Publish) -> Recorded:
    """A session of the small network."""
    return Recorded(publish().model_file)


@pytest.fixture
def graphs(session: Recorded) -> CudaGraphs:
    """Graphs of which none is captured yet."""
    return CudaGraphs(session, SIZES, ("cpu", 0))


def test_a_batch_size_is_captured_once_and_then_replayed(session: Recorded, graphs: CudaGraphs) -> None:
    """First a plain run to compare with, two more, the capture and a check; then only replays."""
    graphs.prepare(3)
    assert session.graph_ids() == [PLAIN, *["1"] * 4]
    assert graphs.captured == (4,)
    for count in (3, 4, 2):
        graphs.prepare(count)
        graphs.run(_noise(count))
    assert session.graph_ids()[5:] == ["1"] * 3


def test_each_batch_size_has_its_own_graph_and_all_are_checked_at_the_end(
    session: Recorded, graphs: CudaGraphs
) -> None:
    """Damage to the first graph by the last capture is detected before anything is served."""
    for count in SIZES:
        graphs.prepare(count)
    assert session.graph_ids()[-3:] == ["1", "2", "3"]
    assert graphs.captured == SIZES


def test_replays_from_two_threads_compute_what_plain_runs_do(
    session: Recorded, graphs: CudaGraphs, publish: Publish
) -> None:
    """For every number of images, with different images each time; one thread runs them all."""
    plain = onnxruntime.InferenceSession(publish().model_file, providers=["CPUExecutionProvider"])

    def compare(seed: int) -> None:
        for count in (*range(1, 9), *range(8, 0, -1)) * 5:
            images = _noise(count, seed)
            graphs.prepare(count)
            found = graphs.run(images)
            expected = plain.run(["probabilities", "embedding"], {"image": images})
            for rows, plain_rows in zip(found, expected, strict=True):
                np.testing.assert_allclose(rows, plain_rows, rtol=1e-6)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(compare, (1, 2)))
    assert len({thread for _, thread in session.runs}) == 1


def test_an_output_outlives_the_next_replay(graphs: CudaGraphs) -> None:
    """The graph writes to the same memory each time."""
    graphs.prepare(4)
    images = _noise(4)
    first = graphs.run(images)
    before = [rows.copy() for rows in first]
    graphs.run(255 - images)
    for rows, kept in zip(first, before, strict=True):
        np.testing.assert_array_equal(rows, kept)


def test_padding_is_always_zero(graphs: CudaGraphs) -> None:
    """Rows of an earlier batch do not stay in it."""
    graphs.prepare(4)
    graphs.run(np.full((3, 8, 8, 3), 255, np.uint8))
    graphs.run(np.full((2, 8, 8, 3), 7, np.uint8))
    images = graphs._graphs[4].images.numpy()
    assert (images[:2] == 7).all()
    assert not images[2:].any()


def test_a_batch_beyond_the_largest_runs_without_a_graph(session: Recorded, graphs: CudaGraphs) -> None:
    """It is answered."""
    graphs.prepare(9)
    assert len(graphs.run(_noise(9))[0]) == 9
    assert session.graph_ids() == [PLAIN]


@pytest.mark.parametrize("images", [np.zeros((4, 8, 3, 8), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_images_of_another_shape_or_type_are_rejected(graphs: CudaGraphs, images: Pixels) -> None:
    """Their number of elements would fit."""
    graphs.prepare(4)
    with pytest.raises(ValueError, match=r"images are \w+ \(8, ., .\), the network takes uint8 \(8, 8, 3\)"):
        graphs.run(images)


def test_a_graph_that_ignores_its_images_is_detected(session: Recorded, graphs: CudaGraphs) -> None:
    """Every request would get the answer to the first."""

    def grow_stale() -> None:
        session.stale = session.graph_ids().count("1") == 4  # the check

    session.on_graph = grow_stale
    with pytest.raises(
        RuntimeError, match="the CUDA graph for 4 images gives other probabilities than a plain"
    ):
        graphs.prepare(4)
    assert graphs.captured == ()


def test_the_next_attempt_has_another_id(session: Recorded, graphs: CudaGraphs) -> None:
    """A graph whose check failed would write to memory that it no longer owns."""
    session.on_graph = _fail
    with pytest.raises(RuntimeError):
        graphs.prepare(4)
    session.on_graph = lambda: None
    graphs.prepare(4)
    assert session.graph_ids()[-1] == "2"


def test_nothing_else_runs_while_a_graph_is_captured() -> None:
    """CUDA would fail the other call and invalidate the capture."""
    calls, order = CudaCalls(), list[str]()
    entered, leave = threading.Event(), threading.Event()

    def run() -> None:
        with calls.shared():
            entered.set()
            assert leave.wait(timeout=30)
            order.append("run")

    def capture() -> None:
        with calls.exclusive():
            order.append("capture")

    with ThreadPoolExecutor(3) as threads:
        threads.submit(run)
        assert entered.wait(timeout=30)
        captured = threads.submit(capture)
        leave.set()
        captured.result(timeout=30)
        with calls.shared(), calls.shared():
            order.append("another run")
    assert order == ["run", "capture", "another run"]


class TestEngine:
    """An engine never fails because of graphs."""

    def test_a_network_that_cannot_be_captured_runs_without_graphs(
        self, session: Recorded, publish: Publish, log_events: LogEvents
    ) -> None:
        """The request is answered, and the log has the reason."""
        session.on_graph = _fail
        engine = _engine(session, publish().model_file)
        assert len(engine.run(_noise(3)).probabilities) == 3
        assert not engine.captured_sizes
        assert len(engine.run(_noise(1)).probabilities) == 1
        (told,) = log_events.named("cuda_graphs_off")
        assert (told.levelname, told.reason) == (
            "WARNING",
            "operation not permitted when stream is capturing",
        )

    def test_a_failed_capture_drops_only_the_graphs(
        self, session: Recorded, publish: Publish, log_events: LogEvents
    ) -> None:
        """All later batches run without graphs."""
        session.on_graph = _fail
        engine = _engine(session, publish().model_file, Optimizations(nhwc=True, cuda_graphs=True))
        for count in (3, 4):
            engine.run(_noise(count))
        assert engine.optimizations == Optimizations(nhwc=True)
        assert len(log_events.records) == 1

    def test_lack_of_memory_is_out_of_memory(
        self, session: Recorded, publish: Publish, log_events: LogEvents
    ) -> None:
        """Dropping the graphs would free little."""

        def exhaust() -> None:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

        session.on_graph = exhaust
        engine = _engine(session, publish().model_file)
        with pytest.raises(OutOfMemory, match="out of memory for 3 images"):
            engine.run(_noise(3))
        assert not log_events.records
        session.on_graph = lambda: None
        assert len(engine.run(_noise(3)).probabilities) == 3
        assert engine.captured_sizes == (4,)

    def test_a_replay_that_fails_later_fails_its_batch(
        self, session: Recorded, publish: Publish, log_events: LogEvents
    ) -> None:
        """The graph was checked, so the GPU is broken, and the engine has to be proven again."""
        engine = _engine(session, publish().model_file)
        engine.run(_noise(3))
        session.on_graph = _fail
        with pytest.raises(EngineError, match="the network failed on 3 images: operation not permitted"):
            engine.run(_noise(3))
        assert not log_events.records

    def test_a_session_is_closed_before_one_with_fewer_optimizations_is_opened(
        self, publish: Publish
    ) -> None:
        """Both would take memory, and an aborted capture might disturb the second."""
        file = publish().model_file
        session = Recorded(file)
        session.on_graph = _fail
        alive = weakref.ref(session)

        def open_session(_plan: Optimizations) -> onnxruntime.InferenceSession:
            assert alive() is None
            return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        factory = SessionFactory(file, open_session, Optimizations(cuda_graphs=True))
        graphs = CudaGraphs(session, SIZES, ("cpu", 0))
        engine = OnnxEngine(session, threads=1, buckets=SIZES, graphs=graphs, factory=factory)
        del session, graphs
        assert len(engine.run(_noise(3)).probabilities) == 3

    def test_an_engine_leaves_no_thread_and_no_session(self, publish: Publish) -> None:
        """A server loads and unloads versions again and again."""
        before = set(threading.enumerate())
        engine = _engine(Recorded(publish().model_file), publish().model_file)
        engine.run(_noise(3))
        (thread,) = set(threading.enumerate()) - before
        alive = weakref.ref(engine._session)
        del engine
        assert alive() is None
        thread.join(timeout=30)
        assert not thread.is_alive()

    def test_a_session_with_fewer_optimizations_may_be_out_of_memory_too(
        self, session: Recorded, publish: Publish
    ) -> None:
        """The version is refused for lack of memory, not because its network is wrong."""
        session.on_graph = _fail

        def open_session(_plan: Optimizations) -> onnxruntime.InferenceSession:
            raise OutOfMemory("cuda:0 is out of memory")

        file = publish().model_file
        graphs = CudaGraphs(session, SIZES, ("cpu", 0))
        factory = SessionFactory(file, open_session, Optimizations(cuda_graphs=True))
        engine = OnnxEngine(session, threads=1, buckets=SIZES, graphs=graphs, factory=factory)
        with pytest.raises(OutOfMemory, match=r"^cuda:0 is out of memory$"):
            engine.run(_noise(3))

    @pytest.mark.parametrize("optimizations", [Optimizations(), Optimizations(cuda_graphs=True)])
    def test_a_closed_engine_frees_its_session_and_stays_closed(
        self, publish: Publish, optimizations: Optimizations
    ) -> None:
        """A later run opens no other session, and is no failure of the network."""
        engine = _engine(Recorded(publish().model_file), publish().model_file, optimizations)
        engine.run(_noise(3))
        alive = weakref.ref(engine._session)
        engine.close()
        assert alive() is None
        with pytest.raises(EngineError, match=r"^the network was unloaded$"):
            engine.run(_noise(3))
        assert not engine.drop_optimization("late")

    def test_a_session_is_freed_neither_in_a_run_nor_in_a_capture(
        self, session: Recorded, publish: Publish
    ) -> None:
        """Closing waits for the current run and for another network's capture."""
        engine = _engine(session, publish().model_file)
        engine.run(_noise(3))
        entered, leave = threading.Event(), threading.Event()

        def wait() -> None:
            entered.set()
            assert leave.wait(timeout=30)

        session.on_graph = wait
        with ThreadPoolExecutor(2) as threads:
            running = threads.submit(engine.run, _noise(3))
            assert entered.wait(timeout=30)
            closing = threads.submit(engine.close)
            assert not closing.done()
            leave.set()
            assert len(running.result(timeout=30).probabilities) == 3
            closing.result(timeout=30)
        other = _engine(Recorded(publish().model_file), publish().model_file)
        with ThreadPoolExecutor(1) as threads:
            with CUDA_CALLS.exclusive():
                closing = threads.submit(other.close)
                assert other._session is not None
                assert not closing.done()
            closing.result(timeout=30)
        assert other._session is None

    def test_a_run_that_hangs_does_not_keep_the_engine_from_closing(
        self, session: Recorded, publish: Publish, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It keeps its session until it ends."""
        monkeypatch.setattr(engine_module, "_CLOSE_TIMEOUT_S", 0.01)
        engine = _engine(session, publish().model_file)
        engine.run(_noise(3))
        entered, leave = threading.Event(), threading.Event()

        def hang() -> None:
            entered.set()
            assert leave.wait(timeout=30)

        session.on_graph = hang
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(engine.run, _noise(3))
            assert entered.wait(timeout=30)
            engine.close()
            leave.set()
            assert len(running.result(timeout=30).probabilities) == 3

    def test_graphs_are_dropped_before_other_optimizations(
        self, session: Recorded, publish: Publish, log_events: LogEvents
    ) -> None:
        """If a proof fails, fewer and fewer are tried."""
        engine = _engine(session, publish().model_file, Optimizations(nhwc=True, cuda_graphs=True))
        engine.run(_noise(3))
        assert engine.captured_sizes == (4,)
        assert engine.drop_optimization("golden probabilities differ")
        assert not engine.captured_sizes
        assert len(engine.run(_noise(3)).probabilities) == 3
        assert engine.drop_optimization("still")
        assert not engine.drop_optimization("and still")
        assert [record.getMessage() for record in log_events.records] == ["cuda_graphs_off", "nhwc_off"]


def _engine(session: Recorded, file: Path, optimizations: Optimizations | None = None) -> OnnxEngine:
    """An engine with graphs of the session, and a real session after they are dropped."""

    def open_session(_plan: Optimizations) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    factory = SessionFactory(file, open_session, optimizations or Optimizations(cuda_graphs=True))
    graphs = CudaGraphs(session, SIZES, ("cpu", 0))
    return OnnxEngine(session, threads=1, buckets=SIZES, graphs=graphs, factory=factory)


def _fail() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def _noise(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng((count, seed)).integers(0, 256, (count, 8, 8, 3), np.uint8)  # (N, H, W, C)
