"""Measured tuning: number of threads, and runs on the event loop."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bundle.images import Pixels
from serving.engine import tuning
from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from serving.engine.remote.client import RemoteEngine
from serving.engine.tuning import RunCost, fastest_run_s, images_on_loop, load_tuned
from tests.colours import Publish
from tests.serving.engines import CPU

SECONDS = st.floats(1e-6, 1)


def test_the_cost_of_other_batch_sizes_is_interpolated() -> None:
    """1 image takes 1 ms, 5 take 9 ms: 3 take 5 ms."""
    assert RunCost(0.001, 5, 0.009).seconds(3) == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("cost", "images"),
    [
        (RunCost(60e-6, 32, 1.1e-3), 32),  # LeNet-5: any batch
        (RunCost(200e-6, 32, 6.4e-3), 10),  # as many as may block the loop
        (RunCost(4e-3, 32, 110e-3), 0),  # mobilenet_v3_small: none
        (RunCost(60e-6, 1, 60e-6), 1),
    ],
)
def test_cheap_networks_stay_on_the_event_loop(cost: RunCost, images: int) -> None:
    """If a run costs less than a switch to a thread and back."""
    assert images_on_loop(cost) == images


@given(one_s=SECONDS, more_s=SECONDS, largest=st.integers(1, 64))
def test_the_loop_is_never_blocked_for_long(one_s: float, more_s: float, largest: int) -> None:
    """A run on the loop takes at most 2 ms."""
    cost = RunCost(one_s, largest, one_s + more_s * (largest > 1))
    images = images_on_loop(cost)
    assert 0 <= images <= largest
    if images:
        assert cost.seconds(images) <= 2e-3


def test_measuring_takes_the_fastest_of_a_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow run on a busy machine does not send a network to the thread."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    engine = _SlowAtFirst(clock)
    assert fastest_run_s(cast("OnnxEngine", engine), 4) == pytest.approx(engine.run_s)
    assert set(engine.sizes) == {4}
    assert len(engine.sizes) > 1


def test_a_small_network_gets_one_thread(publish: Publish) -> None:
    """A network faster than the threshold is not tried on several."""
    engine = load_tuned(publish().model_file, CPU, threads=None, cores=2, max_batch_size=4)
    assert engine.threads == 1


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_given_number_of_threads_is_kept(publish: Publish, threads: int) -> None:
    """Nothing is measured for it."""
    engine = load_tuned(publish().model_file, CPU, threads=threads, cores=2, max_batch_size=4)
    assert engine.threads == threads


@pytest.mark.parametrize(("speedup", "threads"), [(1.9, 2), (1.61, 2), (1.5, 1), (0.7, 1)])
def test_all_cores_are_used_if_they_help(
    monkeypatch: pytest.MonkeyPatch, speedup: float, threads: int
) -> None:
    """Two threads must be 1.6 times as fast as one."""
    loaded: list[_Timed] = []

    def load(_file: Path, _device: Device, *, threads: int, max_batch_size: int) -> "_Timed":
        loaded.append(_Timed(threads, 0.05 / (speedup if threads > 1 else 1)))
        return loaded[-1]

    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(OnnxEngine, "load", load)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    monkeypatch.setattr(_Timed, "clock", clock, raising=False)
    engine = load_tuned(Path("model.onnx"), CPU, threads=None, cores=2, max_batch_size=4)
    assert engine.threads == threads
    assert [each.threads for each in loaded] == [1, 2]


class _Timed:
    """A fake engine whose runs take a given time."""

    clock: SimpleNamespace
    image_shape = (2, 2, 1)

    def __init__(self, threads: int, run_s: float) -> None:
        self.threads = threads
        self.max_images_on_loop = 0
        self._run_s = run_s

    def run(self, _images: Pixels) -> None:
        self.clock.now_s += self._run_s


class _SlowAtFirst:
    """A fake engine whose first run is slow."""

    image_shape = (2, 2, 1)
    slow_s, run_s = 0.05, 0.001

    def __init__(self, clock: SimpleNamespace) -> None:
        self.sizes: list[int] = []
        self._clock = clock

    def run(self, images: Pixels) -> None:
        self._clock.now_s += self.run_s if self.sizes else self.slow_s
        self.sizes.append(len(images))


def test_a_network_in_another_process_never_blocks_the_event_loop(tmp_path: Path) -> None:
    """Even if it is cheap there, the event loop would have to wait for that process."""
    assert RemoteEngine(tmp_path / "socket", tmp_path / "model.onnx").max_images_on_loop == 0


@pytest.mark.parametrize(("kind", "largest"), [("cpu", 4), ("cuda", 0)])
def test_only_networks_on_this_process_s_cpu_run_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, kind: str, largest: int
) -> None:
    """On CUDA, even a cheap network waits for captures of others, so nothing is measured."""
    clock = SimpleNamespace(now_s=0.0)
    timed = _Timed(1, 60e-6)
    monkeypatch.setattr(OnnxEngine, "load", lambda *_, **__: timed)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    monkeypatch.setattr(_Timed, "clock", clock, raising=False)
    engine = load_tuned(Path("model.onnx"), Device(kind, 0, "tests"), threads=1, cores=2, max_batch_size=4)
    assert engine.max_images_on_loop == largest
    assert (clock.now_s > 0) is (kind == "cpu")
