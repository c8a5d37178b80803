"""The Batcher: every request gets its own answer or its own error."""

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching import batcher as batching
from serving.batching.backlog import Backlog
from serving.batching.batcher import PRIORITY_STEP_S, Batcher, BatchRun
from serving.batching.policy import BatchPolicy, Decision, QueuedRequest, take_batch
from serving.bundle.images import Pixels
from serving.engine.base import Output
from serving.errors import DeadlineExceeded, EngineError, ModelUnavailable, OutOfMemory
from tests.serving.engines import FakeEngine


@dataclass(frozen=True)
class Request:
    """One caller, drawn by Hypothesis."""

    size: int
    pause: int  # iterations of the event loop before it arrives
    poisoned: bool
    late: bool
    cancelled: bool


REQUESTS = st.lists(
    st.builds(
        Request,
        size=st.integers(1, 4),
        pause=st.integers(0, 3),
        poisoned=st.integers(0, 5).map(lambda n: n == 0),
        late=st.integers(0, 5).map(lambda n: n == 0),
        cancelled=st.integers(0, 3).map(lambda n: n == 0),
    ),
    max_size=40,
)


class TestBatcher:
    """Every request gets its own answer or its own error."""

    @settings(max_examples=60, deadline=None)
    @given(
        requests=REQUESTS,
        policy=st.builds(BatchPolicy, st.integers(4, 12), st.sampled_from([0.0, 1e-4])),
        max_images_on_loop=st.sampled_from([0, 3, 12]),
    )
    def test_every_request_gets_its_own_answer(
        self, requests: list[Request], policy: BatchPolicy, max_images_on_loop: int
    ) -> None:
        """Under random arrivals, sizes, failures, cancellations and deadlines."""
        samples = _samples(requests)
        poison = {own[0] for own, each in zip(samples, requests, strict=True) if each.poisoned}
        engine = FakeEngine(poison=poison)
        reported: list[BatchRun] = []

        async def everything() -> list[Any]:
            async with Batcher(
                engine.run, policy, reported.append, max_images_on_loop=max_images_on_loop
            ) as batcher:
                calls = []
                for own, each in zip(samples, requests, strict=True):
                    for _ in range(each.pause):
                        await asyncio.sleep(0)
                    deadline_s = time.monotonic() - 1 if each.late else math.inf
                    calls.append(asyncio.create_task(_ask(batcher, _images(*own), deadline_s)))
                    if each.cancelled:
                        asyncio.get_running_loop().call_soon(calls[-1].cancel)
                results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
                # A cancelled request may still run. A later one is answered after that run was recorded.
                await asyncio.wait_for(batcher.submit(_images(255)), 20)
                return results

        results = asyncio.run(everything())
        ran = [sample for run in engine.runs for sample in run]
        for own, each, result in zip(samples, requests, results, strict=True):
            if each.cancelled and isinstance(result, asyncio.CancelledError):
                continue
            if each.late:
                assert isinstance(result, DeadlineExceeded)
                assert not set(own) & set(ran)
            elif each.poisoned:
                assert isinstance(result, EngineError)
            else:
                assert result.probabilities[:, 0].tolist() == own
                assert result.embedding[:, 0].tolist() == [-sample for sample in own]
        assert all(len(run) <= policy.max_batch_size for run in engine.runs)
        good = [len(run) for run in engine.runs if poison.isdisjoint(run)]
        assert [run.images for run in reported] == good
        assert not _engine_threads()

    @settings(max_examples=40, deadline=None)
    @given(requests=REQUESTS)
    def test_a_queue_runs_in_order_without_cancelled_and_expired_requests(
        self, requests: list[Request]
    ) -> None:
        """Requests that are cancelled or expire in the queue never run."""
        engine = FakeEngine()
        samples = _samples(requests)

        async def everything() -> None:
            async with Batcher(engine.run, BatchPolicy(6)) as batcher:
                async with _busy(engine, batcher):
                    calls = []
                    for own, each in zip(samples, requests, strict=True):
                        deadline_s = 0.0 if each.late else math.inf
                        calls.append(asyncio.ensure_future(batcher.submit(_images(*own), deadline_s)))
                    await asyncio.sleep(0)
                    for call, each in zip(calls, requests, strict=True):
                        if each.cancelled:
                            call.cancel()
                await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

        asyncio.run(everything())
        expected = [
            sample
            for own, each in zip(samples, requests, strict=True)
            if not (each.late or each.cancelled)
            for sample in own
        ]
        assert [sample for run in engine.runs[1:] for sample in run] == expected
        for run, following in zip(engine.runs[1:], engine.runs[2:], strict=False):
            first = next(own for own in samples if following[0] in own)
            assert len(run) <= 6 < len(run) + len(first)

    async def test_requests_that_arrive_while_the_engine_is_busy_are_one_batch(self) -> None:
        """When the engine is free, it runs all queued requests."""
        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(32)) as batcher:
            async with _busy(engine, batcher):
                calls = [asyncio.ensure_future(batcher.submit(_images(n))) for n in range(20)]
                await asyncio.sleep(0)
            await asyncio.gather(*calls)
        assert engine.runs[1:] == [list(range(20))]

    async def test_the_backlog_knows_the_batch_that_runs(self) -> None:
        """Its size, until it has ended, also if it fails."""
        engine, backlog = FakeEngine(poison=[2]), Backlog()
        engine.gate.clear()
        async with Batcher(engine.run, BatchPolicy(8), backlog=backlog) as batcher:
            calls = [asyncio.ensure_future(batcher.submit(_images(n))) for n in (1, 1, 1)]
            await asyncio.to_thread(engine.entered.wait, 10)
            assert backlog.running_images == 3
            assert 0 <= time.monotonic() - backlog.running_since_s < 10
            engine.gate.set()
            await asyncio.gather(*calls)
            assert (backlog.running_images, backlog.run_s > 0) == (0, True)
            await asyncio.gather(asyncio.ensure_future(batcher.submit(_images(2))), return_exceptions=True)
            assert backlog.running_images == 0

    async def test_a_failing_image_fails_only_its_own_request(self) -> None:
        """A failed batch runs again, one request at a time."""
        engine = FakeEngine(poison=[2])
        async with Batcher(engine.run, BatchPolicy(8)) as batcher:
            async with _busy(engine, batcher):
                calls = [asyncio.ensure_future(batcher.submit(_images(n))) for n in (1, 2, 3)]
                await asyncio.sleep(0)
            first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(second, EngineError)
        assert isinstance(first, Output)
        assert isinstance(third, Output)
        assert [each.probabilities.tolist() for each in (first, third)] == [[[1]], [[3]]]
        assert engine.runs[1:] == [[1, 2, 3], [1], [2], [3]]

    async def test_a_request_that_is_cancelled_during_a_failing_run_is_not_run_again(self) -> None:
        """Only requests whose callers still wait run again."""
        engine = FakeEngine(poison=[1])
        engine.gate.clear()
        async with Batcher(engine.run, BatchPolicy(3)) as batcher:
            calls = [asyncio.ensure_future(batcher.submit(_images(n))) for n in (1, 2, 3)]
            await asyncio.to_thread(engine.entered.wait, 20)
            calls[1].cancel()
            await asyncio.sleep(0)
            engine.gate.set()
            await asyncio.gather(*calls, return_exceptions=True)
        assert engine.runs == [[1, 2, 3], [1], [3]]

    async def test_cancelled_requests_are_freed_before_the_engine_is_free(self) -> None:
        """Wherever they are in the queue: its head may wait for a long time."""
        engine = FakeEngine()
        engine.gate.clear()
        async with Batcher(engine.run, BatchPolicy(1)) as batcher:
            running, first = batcher.submit(_images(1)), batcher.submit(_images(2))
            images = _images(3)
            cancelled = batcher.submit(images)
            await asyncio.to_thread(engine.entered.wait, 10)
            freed = weakref.ref(images)
            del images
            cancelled.cancel()
            batcher.drop_abandoned()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert freed() is None
            engine.gate.set()
            await asyncio.gather(running, first)
        assert engine.runs == [[1], [2]]

    async def test_an_unexpected_exception_becomes_an_engine_error_with_its_cause(self) -> None:
        """Callers see one kind of error. Its traceback is kept as text: frames would hold the request."""

        def run(images: Pixels) -> Output:
            raise ZeroDivisionError(f"{len(images)} images")

        async with Batcher(run, BatchPolicy(8)) as batcher:
            with pytest.raises(EngineError, match="1 images") as caught:
                await batcher.submit(_images(1))
        assert caught.value.__cause__ is None
        assert "ZeroDivisionError: 1 images" in "".join(caught.value.__notes__)

    async def test_requests_fail_while_no_thread_can_be_started(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No request waits for a run that has not started, and the queue continues."""

        def refuse(_: object) -> None:
            raise RuntimeError("can't start new thread")

        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(1)) as batcher:
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse)
                calls = [batcher.submit(_images(n)) for n in range(3)]
                failed = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
            assert [str(each) for each in failed] == ["the network failed: can't start new thread"] * 3
            assert all(isinstance(each, OutOfMemory) for each in failed)  # the engine is not broken
            answer = await asyncio.wait_for(batcher.submit(_images(2)), 20)
        assert answer.probabilities[:, 0].tolist() == [2]

    @pytest.mark.parametrize("max_images_on_loop", [0, 1])
    async def test_a_run_that_cannot_be_recorded_is_answered(
        self, max_images_on_loop: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Later requests are answered too, and the log has the reason."""

        def fail(_: BatchRun) -> None:
            raise OSError("too many open files")

        engine = FakeEngine()
        async with Batcher(
            engine.run, BatchPolicy(1), fail, max_images_on_loop=max_images_on_loop
        ) as batcher:
            calls = [batcher.submit(_images(n)) for n in range(12)]
            answers = await asyncio.wait_for(asyncio.gather(*calls), 20)
            answers += [await asyncio.wait_for(batcher.submit(_images(n)), 20) for n in range(12)]
        assert [int(each.probabilities[0, 0]) for each in answers] == [*range(12), *range(12)]
        assert {record.message for record in caplog.records} == {"run_not_recorded"}

    async def test_closing_fails_queued_and_running_requests_and_leaves_nothing_behind(self) -> None:
        """Running, queued and new requests get ModelUnavailable; task and thread end."""
        engine = FakeEngine()
        engine.gate.clear()
        async with Batcher(engine.run, BatchPolicy(1)) as batcher:
            calls = [asyncio.ensure_future(batcher.submit(_images(n))) for n in range(3)]
            await asyncio.to_thread(engine.entered.wait, 20)
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert all(isinstance(result, ModelUnavailable) for result in results)
        assert "unloaded" in str(results[0])
        with pytest.raises(ModelUnavailable, match="unloaded"):
            await asyncio.wait_for(batcher.submit(_images(1)), 20)
        engine.gate.set()
        assert not _engine_threads()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert engine.runs == [[0]]

    async def test_closing_during_the_retries_fails_requests_without_an_answer(self) -> None:
        """A batcher that is closed while it retries a failed batch still answers every request."""
        engine = FakeEngine(poison=[0])
        started = threading.Semaphore(0)
        go_on = threading.Semaphore(0)

        def step(images: Pixels) -> Output:
            started.release()
            assert go_on.acquire(timeout=20)
            return engine.run(images)

        async with Batcher(step, BatchPolicy(3)) as batcher:
            calls = [asyncio.ensure_future(batcher.submit(_images(n))) for n in range(3)]
            for _ in range(2):  # the batch, then its first request
                await asyncio.to_thread(started.acquire)
                go_on.release()
            with pytest.raises(EngineError):
                await asyncio.wait_for(calls[0], 20)
            await asyncio.to_thread(started.acquire)
        results = await asyncio.wait_for(asyncio.gather(*calls[1:], return_exceptions=True), 20)
        go_on.release()
        assert [type(result) for result in results] == [ModelUnavailable, ModelUnavailable]
        assert not _engine_threads()

    async def test_an_idle_engine_waits_for_a_fuller_batch_if_a_delay_is_set(self) -> None:
        """With a delay of 30 s two requests run together as soon as they fill the batch."""
        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(2, 30.0)) as batcher:
            first = asyncio.ensure_future(batcher.submit(_images(1)))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not engine.runs
            await asyncio.wait_for(asyncio.gather(first, batcher.submit(_images(2))), 20)
        assert engine.runs == [[1, 2]]

    async def test_a_delay_without_further_requests_ends(self) -> None:
        """A single request runs when it has waited max_queue_delay_s, and its BatchRun says so."""
        runs: list[BatchRun] = []
        async with Batcher(FakeEngine().run, BatchPolicy(2, 0.01), runs.append) as batcher:
            await asyncio.wait_for(batcher.submit(_images(1)), 20)
        assert runs[0].images == 1
        assert runs[0].queued_s[0] >= 0.01

    async def test_a_batch_that_is_held_back_is_not_decided_again_for_every_request_that_joins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One decision holds it back, one releases it."""
        decisions: list[int] = []

        def counted(queue: Sequence[QueuedRequest], now_s: float, policy: BatchPolicy) -> Decision:
            decisions.append(len(queue))
            return take_batch(queue, now_s, policy)

        monkeypatch.setattr(batching, "take_batch", counted)
        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(8, 0.05)) as batcher:
            calls = []
            for n in range(4):
                calls.append(asyncio.ensure_future(batcher.submit(_images(n))))
                for _ in range(5):
                    await asyncio.sleep(0)
            await asyncio.wait_for(asyncio.gather(*calls), 20)
        assert ([waiting for waiting in decisions if waiting], engine.runs) == ([1, 4], [[0, 1, 2, 3]])

    async def test_an_urgent_request_overtakes_slightly_earlier_ones(self) -> None:
        """The queue is ordered by priority, and within a priority by arrival."""
        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(1)) as batcher:
            async with _busy(engine, batcher):
                priorities = (2, 0, 1, 2, 0)
                calls = [
                    asyncio.ensure_future(batcher.submit(_images(n), priority=priority))
                    for n, priority in enumerate(priorities)
                ]
                await asyncio.sleep(0)
            await asyncio.gather(*calls)
        assert engine.runs[1:] == [[1], [4], [2], [0], [3]]

    async def test_no_priority_starves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A request of level 2 is overtaken by urgent requests for two steps and no longer."""
        clock = SimpleNamespace(now_s=100.0)
        monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(1)) as batcher:
            async with _busy(engine, batcher):
                calls = [asyncio.ensure_future(batcher.submit(_images(200), priority=2))]
                await asyncio.sleep(0)
                for n in range(10):
                    clock.now_s += PRIORITY_STEP_S / 2 - 1e-6
                    calls.append(asyncio.ensure_future(batcher.submit(_images(n))))
                    await asyncio.sleep(0)
            await asyncio.gather(*calls)
        assert engine.runs[1:] == [[0], [1], [2], [3], [200], [4], [5], [6], [7], [8], [9]]

    async def test_a_cheap_network_runs_on_the_event_loop_with_all_requests_of_one_iteration(self) -> None:
        """No thread is started, and requests that arrived together run together."""
        engine = FakeEngine()
        threads: list[threading.Thread] = []

        def run(images: Pixels) -> Output:
            threads.append(threading.current_thread())
            return engine.run(images)

        async with Batcher(run, BatchPolicy(8), max_images_on_loop=8) as batcher:
            answers = await asyncio.gather(*(batcher.submit(_images(n)) for n in range(11)))
            assert not _engine_threads()
        assert [answer.probabilities.tolist() for answer in answers] == [[[n]] for n in range(11)]
        assert engine.runs == [list(range(8)), [8, 9, 10]]
        assert set(threads) == {threading.main_thread()}

    async def test_single_requests_run_at_once_until_several_arrive_together(self) -> None:
        """Single requests stop waiting for the end of the iteration; those in flight together share runs."""
        engine = FakeEngine()
        async with Batcher(engine.run, BatchPolicy(8), max_images_on_loop=8) as batcher:
            for n in range(20):
                await batcher.submit(_images(n))
            at_once = batcher.submit(_images(20))
            assert at_once.done()
            assert at_once.result().probabilities.tolist() == [[20]]
            await asyncio.gather(*(batcher.submit(_images(n)) for n in range(100, 164)))
        sizes = [len(run) for run in engine.runs]
        assert sizes[:21] == [1] * 21
        assert sum(sizes) == 21 + 64
        assert sizes[21:].count(1) <= 8
        assert engine.runs == sorted(engine.runs)

    async def test_a_single_request_that_runs_at_once_can_fail_or_expire(self) -> None:
        """Its errors are the same as those of queued requests."""
        engine = FakeEngine(poison=[77])
        async with Batcher(engine.run, BatchPolicy(8), max_images_on_loop=8) as batcher:
            for n in range(9):
                await batcher.submit(_images(n))
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(_images(1), deadline_s=0.0)
            with pytest.raises(EngineError, match="poisoned"):
                await batcher.submit(_images(77))
        assert [77] in engine.runs

    async def test_a_batch_that_would_block_the_event_loop_runs_in_the_thread(self) -> None:
        """max_images_on_loop is the largest batch that runs on the loop."""
        engine = FakeEngine()
        threads: list[str] = []

        def run(images: Pixels) -> Output:
            threads.append(threading.current_thread().name.partition("_")[0])
            return engine.run(images)

        async with Batcher(run, BatchPolicy(8), max_images_on_loop=2) as batcher:
            for count in (2, 3, 1):
                await batcher.submit(_images(*range(count)))
        assert threads == ["MainThread", "engine", "MainThread"]

    async def test_two_busy_queues_on_one_event_loop_take_turns(self) -> None:
        """A busy version does not starve another: they alternate."""
        order: list[str] = []
        hot, cold = FakeEngine(), FakeEngine()

        def noted(name: str, engine: FakeEngine) -> Callable[[Pixels], Output]:
            def run(images: Pixels) -> Output:
                order.append(name)
                return engine.run(images)

            return run

        async with (
            Batcher(noted("hot", hot), BatchPolicy(1), max_images_on_loop=1) as first,
            Batcher(noted("cold", cold), BatchPolicy(1), max_images_on_loop=1) as second,
        ):
            calls = [first.submit(_images(n)) for n in range(9)] + [second.submit(_images(n)) for n in (1, 2)]
            await asyncio.gather(*calls)
        assert order[:4] == ["hot", "cold", "hot", "cold"]

    @pytest.mark.parametrize("count", [0, 5])
    async def test_a_number_of_images_that_never_fits_is_a_bug_of_the_caller(self, count: int) -> None:
        """It would block the queue forever, so it is not queued."""
        async with Batcher(FakeEngine().run, BatchPolicy(4)) as batcher:
            with pytest.raises(ValueError, match=rf"{count} images .* expected 1 to 4\. This is a bug\."):
                await batcher.submit(_images(*[0] * count))


class _busy:  # noqa: N801 - used as a statement
    """Keep the engine of a batcher busy with one image of 255 inside the block."""

    def __init__(self, engine: FakeEngine, batcher: Batcher) -> None:
        self._engine = engine
        self._batcher = batcher

    async def __aenter__(self) -> None:
        self._engine.gate.clear()
        self._plug = asyncio.ensure_future(self._batcher.submit(_images(255)))
        assert await asyncio.to_thread(self._engine.entered.wait, 20)

    async def __aexit__(self, *_: object) -> None:
        self._engine.gate.set()
        await self._plug


def _images(*samples: int) -> Pixels:
    return np.array(samples, np.uint8).reshape(-1, 1, 1, 1)  # (n, 1, 1, 1)


async def _ask(batcher: Batcher, images: Pixels, deadline_s: float) -> Output:
    """Like a caller: a request that runs at once also fails at once."""
    return await batcher.submit(images, deadline_s)


def _samples(requests: list[Request]) -> list[list[int]]:
    """Different samples for all images of all requests: at most 40 * 4 < 255."""
    numbers = iter(range(255))
    return [[next(numbers) for _ in range(each.size)] for each in requests]


def _engine_threads() -> list[threading.Thread]:
    """Engine threads that did not end in time."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("engine")]
    for thread in threads:
        thread.join(timeout=20)
    return [thread for thread in threads if thread.is_alive()]


@pytest.mark.parametrize("max_images_on_loop", [0, 4])
async def test_an_unreachable_engine_is_unavailable_and_not_broken(max_images_on_loop: int) -> None:
    """Its device server has died, which is not an error of the network: a retry may succeed."""

    def run(_: Pixels) -> Output:
        raise ModelUnavailable("the device server is gone")

    images = np.zeros((1, 1, 1, 1), np.uint8)
    async with Batcher(run, BatchPolicy(4), max_images_on_loop=max_images_on_loop) as batcher:
        for count in (1, 3):
            results = await asyncio.gather(
                *(batcher.submit(images) for _ in range(count)), return_exceptions=True
            )
            assert [(type(each), str(each)) for each in results] == [
                (ModelUnavailable, "the device server is gone")
            ] * count
