"""Which versions are served, through changes of the repository, failed loads and broken engines."""

import asyncio
import errno
import gc
import logging
import os
import shutil
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

from serving.bundle import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Bundle,
    Description,
    Golden,
    Repository,
    write_golden,
)
from serving.bundle.images import Pixels
from serving.bundle.repository import MAX_MANIFEST_BYTES
from serving.classify.classifier import Classifier
from serving.engine.base import Output
from serving.engine.onnx import OnnxEngine
from serving.errors import EngineError, ModelUnavailable, OutOfMemory, UnknownModel
from serving.metrics.recorder import Metrics
from serving.models.readiness import Readiness
from serving.models.registry import Models
from serving.models.versions import State, Version
from tests.colours import Publish, write_colours
from tests.serving.engines import CPU
from tests.serving.log_events import LogEvents
from tests.serving.open_models import OpenModels

NAME = "colours"

Scan = Callable[[str], list[int]]  # Repository.versions


def _make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


class Loader:
    """Loads real networks and counts them. Gated loads wait while a test keeps the gate closed."""

    def __init__(self, *, gated: str | None = None) -> None:
        """Gate one version behind a closed gate, or all behind an open one."""
        self._gated = gated
        self.gate = threading.Event()
        if gated is None:
            self.gate.set()
        self.entered = threading.Event()
        self.threads: set[str] = set()  # that loaded
        self.engines: list[Probed] = []
        self.most = 0  # loads at the same time
        self._running = 0
        self._change = threading.Condition()

    def __call__(self, file: Path) -> "Probed":
        """Load an ONNX file."""
        self._count(1)
        try:
            return self._load(file)
        finally:
            self._count(-1)

    def wait_for(self, loads: int) -> None:
        """Wait until this many loads run."""
        with self._change:
            assert self._change.wait_for(lambda: self._running >= loads, timeout=20)

    def _count(self, change: int) -> None:
        with self._change:
            self._running += change
            self.most = max(self.most, self._running)
            self._change.notify_all()

    def _load(self, file: Path) -> "Probed":
        if self._gated in (None, file.parent.name):
            self.entered.set()
            self.threads.add(threading.current_thread().name)
            assert self.gate.wait(timeout=30)
        self.engines.append(Probed(OnnxEngine.load(file, CPU, threads=1, max_batch_size=4)))
        return self.engines[-1]

    async def until_entered(self) -> None:
        """Wait until a load has reached the gate."""
        assert await asyncio.to_thread(self.entered.wait, 20)


class Probed:
    """A real network that counts its runs and that a test can break."""

    max_images_on_loop = 0

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self.error: Exception | None = None
        self.skew = 0.0
        self.runs = 0
        self.gate = threading.Event()
        self.gate.set()

    def run(self, images: Pixels) -> Output:
        """Run, fail, or return wrong probabilities."""
        self.runs += 1
        assert self.gate.wait(timeout=30)
        if self.error is not None:
            raise self.error
        output = self._engine.run(images)
        return Output(output.probabilities + np.float32(self.skew), output.embedding)


class TestFirstLook:
    """What is served after the start."""

    async def test_the_newest_version_of_every_model_is_served(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """One refresh loads the highest version of each model, and nothing else."""
        publish("digits")
        publish("digits")
        publish("faces")
        async with open_models() as models:
            assert models.names() == ["digits", "faces"]
            served = [(each.model, each.version, each.state, each.is_default) for each in models.statuses()]
            assert served == [("digits", 2, State.READY, True), ("faces", 1, State.READY, True)]
            assert models.ready
            with models.lease("digits") as version:
                assert version.number == 2

    @pytest.mark.parametrize("parallel_loads", [1, 2])
    async def test_as_many_versions_load_at_the_same_time_as_allowed(
        self, publish: Publish, open_models: OpenModels, parallel_loads: int
    ) -> None:
        """The others wait; all are served in the end."""
        names = ["digits", "faces", "flowers"]
        for name in names:
            publish(name)
        load = Loader()
        load.gate.clear()
        async with open_models(load_engine=load, scanned=False, parallel_loads=parallel_loads) as models:
            await asyncio.to_thread(load.wait_for, parallel_loads)
            assert len([each for each in models.statuses() if each.state is State.LOADING]) == parallel_loads
            load.gate.set()
            await asyncio.wait_for(models.scanned(), 20)
            assert [each.model for each in models.statuses() if each.state is State.READY] == names
        assert load.most == parallel_loads

    async def test_before_the_first_refresh_models_are_unavailable_and_not_unknown(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Meanwhile the server is not ready."""
        publish()
        load = Loader()
        load.gate.clear()
        async with open_models(load_engine=load, scanned=False) as models:
            await load.until_entered()
            assert models.why_not_ready == "models are not loaded yet: colours"
            assert [each.state for each in models.statuses()] == [State.LOADING]
            for name in (NAME, "nobody"):
                with pytest.raises(
                    ModelUnavailable, match=rf"'{name}' is not loaded yet: the server is starting"
                ):
                    models.get(name)
            load.gate.set()
            await asyncio.wait_for(models.scanned(), 20)
            assert models.ready
            assert _default(models) == 1

    async def test_an_empty_repository_is_ready(self, open_models: OpenModels) -> None:
        """It has nothing to serve, but nothing is wrong."""
        async with open_models() as models:
            assert models.ready
            with pytest.raises(UnknownModel, match=r"^there is no model 'digits'; known models: none$"):
                models.get("digits")

    async def test_the_older_version_is_served_if_the_newest_is_refused(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """A server also starts if the newest version is bad."""
        publish()
        publish(lie=True)
        async with open_models() as models:
            assert models.ready
            assert _default(models) == 1
            assert "golden probabilities differ" in models.get(NAME).refused[2]
            states = [(each.version, each.state) for each in models.statuses()]
            assert states == [(1, State.READY), (2, State.REFUSED)]

    async def test_only_the_version_that_does_not_fit_into_memory_is_refused(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """It may fail at load or at its first batch; the others are served."""
        publish()
        publish()
        load = Loader()

        def load_engine(file: Path) -> Probed:
            engine = load(file)
            if file.parent.name == "2":
                engine.error = OutOfMemory("the device is out of memory for 4 images: serve fewer models")
            return engine

        async with open_models(load_engine=load_engine) as models:
            assert models.ready
            assert _default(models) == 1
            (told,) = log_events.named("version_refused")
            assert told.reason == "the device is out of memory for 4 images: serve fewer models"
            assert not told.exc_info

    async def test_a_server_without_a_working_version_is_not_ready(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """It must not get requests, because it cannot answer any."""
        publish(lie=True)
        async with open_models() as models:
            assert not models.ready
            message = (
                "'colours' has no version that can answer: version 1 was refused: golden probabilities differ"
            )
            with pytest.raises(ModelUnavailable, match=message), models.lease(NAME):
                pytest.fail("there is nothing to lease")

    async def test_one_model_that_cannot_be_served_does_not_affect_readiness(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """The other models are served."""
        publish("bad", lie=True)
        publish("good")
        async with open_models() as models:
            assert models.ready
            assert not models.get("bad").ready
            assert models.get("good").ready
            assert _model_ready(models) == {"bad": 0, "good": 1}
            shutil.rmtree(repository.root / "bad")
            await models.refresh()
            assert _model_ready(models) == {"good": 1}

    @pytest.mark.parametrize("readiness", [Readiness(is_strict=True), Readiness(("bad",))])
    async def test_a_model_that_must_serve_makes_the_server_not_ready(
        self, publish: Publish, open_models: OpenModels, readiness: Readiness
    ) -> None:
        """All of them with strict readiness, or one that the operator names. Repairing it is enough."""
        publish("bad", lie=True)
        publish("good")
        async with open_models(readiness=readiness) as models:
            assert models.why_not_ready.startswith("model 'bad' cannot answer: version 1 was refused: golden")
            publish("bad")
            await models.refresh()
            assert models.ready


class TestLookup:
    """Models, versions and aliases by name, and errors for unknown ones."""

    async def test_an_error_for_an_unknown_name_lists_the_known_ones(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """For a model, a version and an alias."""
        publish()
        publish()
        repository.set_alias(NAME, "canary", 1)
        async with open_models() as models:
            hint = "if it is published, promote it (`lenserve models promote colours@7`), or give it an alias"
            cases: list[tuple[str, Any, str]] = [
                ("colors", None, "there is no model 'colors'; known models: colours"),
                (NAME, 7, f"version 7 of model 'colours' is not served; served versions: 1, 2; {hint}"),
                (NAME, "beta", "model 'colours' has no alias 'beta'; known aliases: canary"),
            ]
            for name, revision, message in cases:
                with pytest.raises(UnknownModel) as caught, models.lease(name, revision):
                    pytest.fail("there is nothing to lease")
                assert str(caught.value) == message

    async def test_a_version_is_found_by_number_and_by_alias(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """Without either it is the newest."""
        publish()
        publish()
        repository.set_alias(NAME, "canary", 1)
        async with open_models() as models:
            for revision, number in ((None, 2), (2, 2), (1, 1), ("canary", 1)):
                with models.lease(NAME, revision) as version:
                    assert version.number == number

    async def test_a_refused_version_says_why(self, publish: Publish, open_models: OpenModels) -> None:
        """The version exists, so it is unavailable and not unknown."""
        publish()
        publish(lie=True)
        async with open_models() as models:
            message = "version 2 of model 'colours' was refused: golden probabilities differ"
            with pytest.raises(ModelUnavailable, match=message), models.lease(NAME, 2):
                pytest.fail("there is nothing to lease")

    async def test_a_model_that_is_loading_for_the_first_time_says_so(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """A new model is unavailable until it is loaded; the server stays ready."""
        publish("digits")
        load = Loader()
        async with open_models(load_engine=load) as models:
            load.gate.clear()
            load.entered.clear()
            publish("faces")
            refreshing = asyncio.ensure_future(models.refresh())
            await load.until_entered()
            assert models.ready
            with pytest.raises(ModelUnavailable, match=r"^model 'faces' is loading$"):
                models.get("faces")
            load.gate.set()
            await refreshing
            assert _default(models, "faces") == 1

    async def test_a_new_version_that_is_loading_says_so(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """A request for its number is rejected as loading; all others get the old version."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            load.gate.clear()
            load.entered.clear()
            publish()
            refreshing = asyncio.ensure_future(models.refresh())
            await load.until_entered()
            with (
                pytest.raises(ModelUnavailable, match="version 2 of model 'colours' is loading"),
                models.lease(NAME, 2),
            ):
                pytest.fail("it is loading")
            assert _default(models) == 1
            load.gate.set()
            await refreshing
            assert _default(models) == 2


class TestNewVersions:
    """A new version replaces the old one, and no request fails."""

    async def test_a_new_version_is_swapped_in_while_requests_flow_and_none_fails(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """All answers to sixteen callers are correct, first from the old version, then from the new."""
        publish()
        metrics = Metrics()
        green = np.zeros((4, 4, 3), np.uint8)
        green[..., 1] = 255
        async with (
            open_models(poll_interval_s=0.01, metrics=metrics, max_batch_size=8) as models,
            Classifier(models, metrics=metrics) as classifier,
        ):
            met_another = asyncio.Semaphore(0)

            async def call_until_replaced() -> list[tuple[int, str]]:
                answers: list[tuple[int, str]] = []
                while not answers or answers[-1][0] < 3:
                    answer = await classifier.classify([green], model=NAME, top_k=1)
                    ranking = answer.results[0]
                    assert isinstance(ranking, tuple)
                    if not answers or answers[-1][0] != answer.version:
                        met_another.release()
                    answers.append((answer.version, ranking[0].label))
                return answers

            callers = [asyncio.ensure_future(call_until_replaced()) for _ in range(16)]
            for rotate in (1, 0):
                for _ in callers:
                    await asyncio.wait_for(met_another.acquire(), 20)
                await asyncio.to_thread(publish, rotate=rotate)
            told = await asyncio.wait_for(asyncio.gather(*callers), 30)
        for answers in told:
            assert set(answers) == {(1, "green"), (2, "blue"), (3, "green")}
            versions = [version for version, _ in answers]
            assert versions == sorted(versions)

    async def test_a_lease_keeps_the_old_version_alive_until_it_ends(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """A request ends with the version it began with; then the version leaves no trace in memory."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            image = np.zeros((1, 8, 8, 3), np.uint8)
            with models.lease(NAME) as old, models.lease(NAME):
                publish(rotate=1)
                await models.refresh()
                assert _default(models) == 2
                assert (await old.batcher.submit(image)).probabilities.shape == (1, 3)
                assert not log_events.named("version_unloaded")
            engine = weakref.ref(load.engines.pop(0))
            await log_events.wait_for("version_unloaded")
            with pytest.raises(ModelUnavailable, match="unloaded"):
                await old.batcher.submit(image)
            del old
            assert not _engine_threads()
            gc.collect()
            assert engine() is None

    async def test_an_unloaded_version_frees_its_engine_in_a_thread(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """On CUDA this waits for captures, which must not block the event loop."""
        publish()
        engines = list[_Noted]()

        def load(file: Path) -> OnnxEngine:
            engine = _Noted.load(file, CPU, threads=1, max_batch_size=4)
            assert isinstance(engine, _Noted)
            engines.append(engine)
            return engine

        async with open_models(load_engine=load) as models:
            version = models.lease(NAME)
            assert not engines[0].closed_in
        with pytest.raises(ModelUnavailable, match="unloaded"):
            version.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
        (thread,) = engines[0].closed_in
        assert thread is not threading.main_thread()
        with pytest.raises(EngineError, match="the network was unloaded"):
            engines[0].run(np.zeros((1, 8, 8, 3), np.uint8))

    async def test_a_cheap_network_runs_on_the_event_loop(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """The engine says up to which batch size."""
        publish()

        def load(file: Path) -> OnnxEngine:
            engine = OnnxEngine.load(file, CPU, threads=1, max_batch_size=4)
            engine.max_images_on_loop = 1
            return engine

        async with open_models(load_engine=load) as models:
            with models.lease(NAME) as version:
                await version.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
                assert not _engine_threads()
                await version.batcher.submit(np.zeros((2, 8, 8, 3), np.uint8))
                assert _engine_threads(most=1)

    async def test_a_repeated_swap_leaves_one_task_and_one_thread(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """After ten versions there is one queue with one thread, and the watcher."""
        publish()
        async with open_models() as models:
            with models.lease(NAME) as first:
                await first.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
            tasks = len(asyncio.all_tasks())
            for number in range(2, 12):
                publish()
                await models.refresh()
                with models.lease(NAME) as version:
                    assert version.number == number
                    await version.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
            await log_events.wait_for("version_unloaded", times=10)
            await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) == tasks
            assert len(_engine_threads(most=1)) == 1
        assert not _engine_threads()

    async def test_metrics_of_an_unloaded_version_are_removed_some_time_later(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Those of the version that replaced it stay."""
        publish()
        metrics = Metrics()
        async with open_models(metrics=metrics, keep_metrics_s=0.0) as models:
            publish()
            await models.refresh()
            async with asyncio.timeout(20):
                while metrics.images.find(NAME, "1", "OK") is not None:  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0)
            scrape = generate_latest(metrics.registry).decode()
            assert f'model="{NAME}",version="2"' in scrape
            assert f'model="{NAME}",version="1"' not in scrape

    async def test_metrics_of_a_version_that_is_loaded_again_continue(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """Although the time after which they would have been removed has passed."""
        publish()
        metrics = Metrics()
        async with open_models(metrics=metrics, keep_metrics_s=0.05) as models:
            with models.lease(NAME) as version:
                version.metrics.record_success(3, 0.5)
            await models.unload(NAME)
            await log_events.wait_for("version_unloaded")
            unloaded_s = asyncio.get_running_loop().time()
            await models.load(NAME)
            passed = asyncio.Event()
            asyncio.get_running_loop().call_at(unloaded_s + 0.1, passed.set)
            await passed.wait()
            images = metrics.images.find(NAME, "1", "OK")
            assert images is not None
            assert images.value == 3


class TestBadVersions:
    """A bad version never replaces one that works."""

    async def test_failed_loads_are_counted_until_their_model_is_removed(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """From 0 on for a model that loads; the count goes with the folder of a model that never did."""
        good, bad = publish(), publish("bad", lie=True)
        metrics = Metrics()
        async with open_models(metrics=metrics) as models:
            counts = {labels: each.value for labels, each in metrics.load_failures.items()}
            assert counts == {(good.model,): 0, ("bad",): 1}
            shutil.rmtree(bad.folder.parent)
            await models.refresh()
            assert [labels for labels, _ in metrics.load_failures.items()] == [(good.model,)]

    @pytest.mark.parametrize("file", [MODEL_FILE, GOLDEN_FILE])
    async def test_a_flipped_bit_is_refused_and_the_old_version_stays(
        self, publish: Publish, open_models: OpenModels, file: str
    ) -> None:
        """The message names the file and both digests."""
        publish()
        async with open_models() as models:
            _flip_a_bit(publish(rotate=1).folder / file)
            await models.refresh()
            assert _default(models) == 1
            assert models.ready
            assert f"2/{file} has SHA-256" in models.get(NAME).refused[2]

    @pytest.mark.parametrize("file", [MODEL_FILE, GOLDEN_FILE, MANIFEST_FILE])
    async def test_a_missing_file_is_refused_and_the_old_version_stays(
        self, publish: Publish, open_models: OpenModels, file: str
    ) -> None:
        """The message names the file."""
        publish()
        async with open_models() as models:
            (publish(rotate=1).folder / file).unlink()
            await models.refresh()
            assert _default(models) == 1
            assert f"2/{file} cannot be read" in models.get(NAME).refused[2]

    async def test_labels_that_do_not_fit_the_network_are_refused(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """Four labels for a network of three classes, with valid digests and golden examples of four."""
        bundle = publish()
        async with open_models() as models:
            _publish_with_a_fourth_label(repository, bundle)
            await models.refresh()
            assert _default(models) == 1
            reason = models.get(NAME).refused[2]
            assert reason == "golden probabilities have shape [3, 4], the network's have [3, 3]"

    async def test_an_unexpected_error_while_loading_refuses_only_that_version(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """The watch continues, and the next version is served."""
        publish()
        failing = Loader()

        def load(file: Path) -> Probed:
            if file.parent.name == "2":
                raise ZeroDivisionError("unexpected")
            return failing(file)

        async with open_models(load_engine=load) as models:
            publish()
            await models.refresh()
            assert models.get(NAME).refused == {2: "unexpected"}
            publish()
            await models.refresh()
            assert _default(models) == 3

    async def test_a_refused_version_is_not_loaded_again_until_it_changes(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """A bad version is loaded once, not at every refresh, and again after its manifest was rewritten."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            bad = publish(lie=True)
            for _ in range(3):
                await models.refresh()
            assert len(load.engines) == 2
            manifest = bad.folder / MANIFEST_FILE
            manifest.write_bytes(manifest.read_bytes())
            for _ in range(3):
                await models.refresh()
            assert len(load.engines) == 3
            assert _default(models) == 1

    @pytest.mark.parametrize(
        "passing",
        [
            OutOfMemory("the device is out of memory"),
            OSError("Stale file handle"),
            MemoryError(),
            RuntimeError("can't start new thread"),
        ],
    )
    async def test_a_failure_that_may_pass_is_tried_again_and_logged_once(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents, passing: Exception
    ) -> None:
        """With the same files, after pauses."""
        publish()
        loading = Loader()
        failures = iter([passing] * 3)

        def load(file: Path) -> Probed:
            for failure in failures:
                raise failure
            return loading(file)

        async with open_models(load_engine=load, retry_s=0.001, poll_interval_s=0.005) as models:
            await log_events.wait_for("version_serving")
            assert _default(models) == 1
            assert not models.get(NAME).refused
        refused = log_events.named("version_refused")
        assert [event.retry_s for event in refused] == [0.001]
        assert len(log_events.named("version_loading")) == 1

    async def test_a_failure_that_may_pass_is_not_tried_again_at_once(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Loading a large network at every refresh would take the CPU from the others."""
        publish()
        loads: list[Path] = []

        def load(file: Path) -> Probed:
            loads.append(file)
            raise OutOfMemory("the device is out of memory")

        async with open_models(load_engine=load, retry_s=3600) as models:
            for _ in range(3):
                await models.refresh()
        assert len(loads) == 1

    async def test_a_file_in_a_folder_of_a_refused_version_can_be_repaired(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """Changes are noticed at any depth."""

        def write(folder: Path) -> Description:
            (folder / "report").mkdir()
            (folder / "report" / "metrics.json").write_bytes(b"{}")
            return write_colours(folder, rotate=1, lie=False)

        publish()
        async with open_models() as models:
            report = repository.publish(NAME, write).folder / "report" / "metrics.json"
            whole = report.read_bytes()
            report.write_bytes(b"x" * len(whole))
            await models.refresh()
            assert "report/metrics.json has SHA-256" in models.get(NAME).refused[2]
            report.write_bytes(whole)
            await models.refresh()
            assert _default(models) == 2

    async def test_a_repaired_version_is_served(self, publish: Publish, open_models: OpenModels) -> None:
        """A version that is copied file by file is refused while incomplete, and served once complete."""
        publish()
        async with open_models() as models:
            folder = publish(rotate=1).folder
            whole = (folder / MODEL_FILE).read_bytes()
            (folder / MODEL_FILE).write_bytes(whole[:100])
            await models.refresh()
            assert f"has 100 bytes, its manifest says {len(whole)}" in models.get(NAME).refused[2]
            (folder / MODEL_FILE).write_bytes(whole)
            await models.refresh()
            assert _default(models) == 2
            assert not models.get(NAME).refused

    async def test_a_version_that_is_deleted_while_it_loads_is_refused_and_forgotten(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """The old version stays, and the next refresh does not list the other."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            load.gate.clear()
            load.entered.clear()
            folder = publish().folder
            refreshing = asyncio.ensure_future(models.refresh())
            await load.until_entered()
            shutil.rmtree(folder)
            load.gate.set()
            await refreshing
            assert _default(models) == 1
            await models.refresh()
            assert not models.get(NAME).refused

    async def test_the_metrics_show_the_current_states(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Each version has one state at a time, also after a second refusal for the same reason."""
        publish()
        metrics = Metrics()
        async with open_models(metrics=metrics) as models:
            bad = publish(lie=True)
            for _ in range(2):
                await models.refresh()
                assert _states(metrics) == {("1", "ready"), ("2", "refused")}
                os.utime(bad.folder / MANIFEST_FILE)
            publish()
            await models.refresh()
            assert _states(metrics) == {("2", "refused"), ("3", "ready")}
            shutil.rmtree(bad.folder)
            await models.refresh()
            assert _states(metrics) == {("3", "ready")}


class TestAliases:
    """Aliases pin the default version, and add others."""

    async def test_stable_pins_the_default_version(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """A newer version waits until the alias moves to it."""
        publish()
        repository.set_alias(NAME, "stable", 1)
        async with open_models() as models:
            publish()
            await models.refresh()
            assert _default(models) == 1
            assert list(models.get(NAME).versions) == [1]
            repository.set_alias(NAME, "stable", 2)
            await models.refresh()
            assert _default(models) == 2

    async def test_other_aliases_are_served_too(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """They are unloaded when the alias moves."""
        for _ in range(3):
            publish()
        repository.set_alias(NAME, "canary", 1)
        async with open_models() as models:
            lines = {each.version: (each.is_default, each.aliases) for each in models.statuses()}
            assert lines == {1: (False, ("canary",)), 3: (True, ())}
            repository.set_alias(NAME, "canary", 2)
            await models.refresh()
            assert sorted(models.get(NAME).versions) == [2, 3]

    async def test_stable_on_a_refused_version_keeps_the_default(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """Promoting a bad version changes nothing but the log."""
        publish()
        publish(lie=True)
        async with open_models() as models:
            repository.set_alias(NAME, "stable", 2)
            await models.refresh()
            assert _default(models) == 1
            with (
                pytest.raises(ModelUnavailable, match=r"version 2 .* was refused"),
                models.lease(NAME, "stable"),
            ):
                pytest.fail("it was refused")

    async def test_the_newest_that_loads_is_served_while_stable_names_a_missing_version(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """aliases.json may be edited. The log says so once."""
        publish()
        publish()
        (repository.root / NAME / "aliases.json").write_text('{"stable": {"version": 3}}')
        async with open_models() as models:
            await models.refresh()
            assert _default(models) == 2
            (problem,) = log_events.named("model_problem")
            assert problem.reason == _unservable(3)
            publish()
            await models.refresh()
            assert _default(models) == 3
            assert not models.get(NAME).problem

    async def test_the_newest_that_loads_is_served_if_stable_is_damaged_at_the_start(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """A version is better than none."""
        publish()
        publish(lie=True)
        repository.set_alias(NAME, "stable", 2)
        async with open_models() as models:
            assert _default(models) == 1
            assert models.get(NAME).problem == _unservable(2)

    @pytest.mark.parametrize("content", ["{", "[]", '{"stable": 2}', '{"stable": {"version": 0}}', None])
    async def test_damaged_aliases_keep_the_served_versions_and_do_not_affect_other_models(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        log_events: LogEvents,
        content: str | None,
    ) -> None:
        """The damage is logged once, and repaired aliases take effect again."""
        aliases = repository.root / "a" / "aliases.json"
        publish("a")
        publish("b")
        repository.set_alias("a", "stable", 1)
        async with open_models() as models:
            publish("a")
            publish("b")
            aliases.unlink()
            aliases.write_text(content) if content is not None else aliases.mkdir()
            for _ in range(3):
                await models.refresh()
            assert (_default(models, "a"), _default(models, "b")) == (1, 2)
            assert models.ready
            (record,) = log_events.named("model_unreadable")
            assert "aliases.json" in record.reason
            aliases.unlink() if content is not None else aliases.rmdir()
            await models.refresh()
            assert _default(models, "a") == 2

    async def test_the_newest_is_served_if_aliases_are_damaged_at_the_start(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """The log says that they are ignored, and what is served: that, until they are repaired."""
        publish("a")
        publish("a")
        publish("b")
        aliases = repository.root / "a" / "aliases.json"
        aliases.write_text("{")
        async with open_models() as models:
            await models.refresh()
            assert (_default(models, "a"), _default(models, "b")) == (2, 1)
            (problem,) = log_events.named("model_problem")
            assert problem.reason.startswith(f"its aliases are ignored: {aliases}: ")
            assert (problem.levelno, problem.served_version) == (logging.ERROR, 2)
            publish("a")
            await models.refresh()
            assert _default(models, "a") == 2
            aliases.write_text('{"stable": {"version": 1}}')
            await models.refresh()
            assert _default(models, "a") == 1
            assert not models.get("a").problem


class TestRepositoryChanges:
    """Models and folders that are removed."""

    async def test_a_removed_model_is_unloaded(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """It is then unknown, until it is published again."""
        publish("a")
        publish("b")
        async with open_models() as models:
            shutil.rmtree(repository.root / "a")
            await models.refresh()
            await log_events.wait_for("version_unloaded")
            with pytest.raises(UnknownModel, match="no model 'a'; known models: b"):
                models.get("a")
            publish("a")
            await models.refresh()
            assert _default(models, "a") == 1

    async def test_without_the_newest_version_the_one_before_is_served(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Deleting a version is a way to roll back."""
        publish()
        newest = publish()
        async with open_models() as models:
            shutil.rmtree(newest.folder)
            await models.refresh()
            assert _default(models) == 1

    async def test_versions_are_served_while_the_repository_is_missing(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """By default and by alias. It is logged once; new versions are loaded once the repository is back."""
        publish()
        publish()
        repository.set_alias(NAME, "canary", 1)
        away = repository.root.with_name("away")
        async with open_models(poll_interval_s=0.001) as models:
            repository.root.rename(away)
            await log_events.wait_for("repository_unreadable")
            with pytest.raises(FileNotFoundError, match="is not a directory"):
                await models.refresh()
            assert models.ready
            for revision, number in ((None, 2), ("canary", 1)):
                with models.lease(NAME, revision) as version:
                    assert version.number == number
            away.rename(repository.root)
            await asyncio.to_thread(publish)
            async with asyncio.timeout(20):
                while _default(models) < 3:
                    await models.change.wait()
            assert len(log_events.named("repository_unreadable")) == 1

    async def test_versions_are_served_while_the_repository_is_empty(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """A volume that fell away leaves an empty folder."""
        publish()
        away = repository.root.with_name("away")
        async with open_models(poll_interval_s=0.001) as models:
            repository.root.rename(away)
            repository.root.mkdir()
            await log_events.wait_for("repository_unreadable")
            (event,) = log_events.named("repository_unreadable")
            assert event.reason == (
                f"the repository {repository.root} is empty: what was loaded is served on; mount it again, "
                "or restart the server if it is meant to be empty"
            )
            assert (_default(models), models.ready) == (1, True)

    async def test_the_last_model_is_unloaded_if_it_was_removed(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """That leaves a file, which a volume that fell away does not; publishing removes it."""
        publish()
        async with open_models() as models:
            repository.remove_model("colours")
            await models.refresh()
            assert models.names() == []
            publish()
            await models.refresh()
            assert models.names() == ["colours"]
            shutil.rmtree(repository.model_folder("colours"))
            with pytest.raises(FileNotFoundError, match="is empty: what was loaded is served on"):
                await models.refresh()

    async def test_a_repository_that_cannot_be_read_at_start_is_not_an_empty_one(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """The server is not ready until it has read the repository."""
        publish()
        away = repository.root.with_name("away")
        repository.root.rename(away)
        async with open_models() as models:
            assert "cannot be read" in models.why_not_ready
            assert not models.ready
            away.rename(repository.root)
            await models.refresh()
            assert _default(models) == 1
            assert models.ready

    async def test_versions_are_served_while_their_folder_is_empty(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """The same for a volume of one model."""
        publish("a")
        publish("b")
        async with open_models() as models:
            shutil.rmtree(repository.root / "a" / "1")
            for _ in range(2):
                await models.refresh()
            assert (_default(models, "a"), _default(models, "b")) == (1, 1)
            (event,) = log_events.named("model_unreadable")
            assert (
                event.reason == "its folder is empty: what was loaded is served on; restore it, or remove it"
            )

    async def test_a_folder_that_cannot_be_read_costs_no_other_model(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """At the start too. Its own requests are told why."""
        publish("a")
        publish("b")
        scan = repository.versions
        monkeypatch.setattr(repository, "versions", _deny(scan, "a"))  # permissions do not bind root
        async with open_models() as models:
            assert _default(models, "b") == 1
            assert models.ready
            with pytest.raises(ModelUnavailable, match=r"'a' has no version that can answer: .*denied"):
                models.lease("a").__enter__()
            monkeypatch.setattr(repository, "versions", scan)
            await models.refresh()
            assert _default(models, "a") == 1

    async def test_a_folder_that_hangs_costs_no_other_model(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """At the start and later, and it is served as soon as it can be read."""
        publish("a")
        publish("b")
        scan, gate = repository.versions, threading.Event()
        monkeypatch.setattr(repository, "versions", _hang(scan, "a", gate))
        async with open_models(patience_s=0.05) as models:
            assert _default(models, "b") == 1
            publish("b")
            await models.refresh()
            assert _default(models, "b") == 2
            gate.set()
            async with asyncio.timeout(20):
                while "a" not in models.names() or not models.get("a").ready:
                    await models.change.wait()
            assert _default(models, "a") == 1

    async def test_a_load_that_hangs_costs_no_other_model(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Even if loads run one after the other."""
        publish("b")
        load = Loader(gated="7")
        async with open_models(load_engine=load, patience_s=0.05, parallel_loads=1) as models:
            hanging = publish("a").folder
            hanging.rename(hanging.with_name("7"))
            publish("b")
            await models.refresh()
            async with asyncio.timeout(20):
                while _default(models, "b") < 2:
                    await models.change.wait()
            assert [each.model for each in models.statuses() if each.state is State.LOADING] == ["a"]
            load.gate.set()
            async with asyncio.timeout(20):
                while "a" not in models.names() or not models.get("a").ready:
                    await models.change.wait()

    async def test_the_start_does_not_wait_for_a_load_that_hangs(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """It leaves its place to the others, and an older version of its own model is served."""
        for name in ("a", "a", "b"):
            publish(name)
        load = Loader(gated="2")
        async with open_models(load_engine=load, stuck_s=0.1, parallel_loads=1) as models:
            assert models.ready
            assert (_default(models, "a"), _default(models, "b")) == (1, 1)
            load.gate.set()
            async with asyncio.timeout(20):
                while _default(models, "a") != 2:
                    await models.change.wait()
        (overdue,) = log_events.named("version_overdue")
        assert overdue.reason.startswith("loading it has made no progress for 0.1 s: ")

    @pytest.mark.parametrize(
        ("hangs", "readiness"),
        [
            ("load", Readiness(("a",))),
            ("load", Readiness(is_strict=True)),
            ("folder", Readiness(("a",))),
            ("folder", Readiness(is_strict=True)),
        ],
    )
    async def test_a_server_that_must_serve_a_model_that_hangs_is_not_ready(  # noqa: PLR0917 - fixtures
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
        readiness: Readiness,
        hangs: str,
    ) -> None:
        """Until it serves it. A model whose folder hangs is unavailable, and not unknown."""
        publish("a").folder.rename(repository.root / "a" / "7")
        publish("b")
        load, scan = Loader(gated="7" if hangs == "load" else "none"), repository.versions
        if hangs == "folder":
            monkeypatch.setattr(repository, "versions", _hang(scan, "a", load.gate))
        async with open_models(load_engine=load, stuck_s=0.1, readiness=readiness) as models:
            assert "model 'a' cannot answer" in models.why_not_ready
            assert _default(models, "b") == 1
            with pytest.raises(ModelUnavailable):
                models.lease("a")
            load.gate.set()
            async with asyncio.timeout(20):
                while not models.ready:
                    await models.change.wait()
            assert _default(models, "a") == 7

    async def test_the_start_waits_for_loads_that_work_or_end(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """However long they take together, and how short the limit on a standstill is."""
        names = [f"m{number}" for number in range(8)]
        for name in names:
            publish(name)
        loading = Loader()

        def load(file: Path) -> Probed:
            until_s = time.thread_time() + 0.4
            while file.parent.parent.name == "m0" and time.thread_time() < until_s:
                pass  # it computes
            time.sleep(0.05)  # it waits for its volume
            return loading(file)

        async with open_models(load_engine=load, stuck_s=0.3, parallel_loads=1) as models:
            assert models.ready
            assert [name for name in names if _default(models, name) == 1] == names

    async def test_a_folder_that_hangs_delays_no_other_model(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """New versions and new models are served at the next scan."""
        for name in ("a", "b"):
            publish(name)
        async with open_models(poll_interval_s=0.01, patience_s=20) as models:
            gate = threading.Event()
            monkeypatch.setattr(repository, "versions", _hang(repository.versions, "a", gate))
            monkeypatch.setattr(repository, "overlooked", lambda model: [] if model else _wait(gate))
            publish("b")
            publish("c")
            async with asyncio.timeout(10):
                while models.names() != ["a", "b", "c"] or _default(models, "b") != 2:
                    await models.change.wait()
            gate.set()

    async def test_a_folder_that_hangs_is_logged_once_and_counted(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
        log_events: LogEvents,
    ) -> None:
        """Until it can be read again."""
        publish()
        metrics = Metrics()
        async with open_models(patience_s=0.05, metrics=metrics) as models:
            gate = threading.Event()
            with monkeypatch.context() as patched:
                patched.setattr(repository, "versions", _hang(repository.versions, NAME, gate))
                for _ in range(2):
                    await models.refresh()
            assert b"lenserve_repository_problems 1.0" in generate_latest(metrics.registry)
            gate.set()
            await models.refresh()
            assert b"lenserve_repository_problems 0.0" in generate_latest(metrics.registry)
        (overdue,) = log_events.named("model_overdue")
        assert "more than 0.05 s" in overdue.reason

    async def test_a_repository_that_hangs_is_a_problem(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
        log_events: LogEvents,
    ) -> None:
        """It is logged, what was loaded is served, and it takes one thread, however long it hangs."""
        publish()
        async with open_models(poll_interval_s=0.01, patience_s=0.05) as models:
            listing, gate, calls = repository.model_folders, threading.Event(), []

            def hang() -> list[str]:
                calls.append(threading.current_thread())
                assert gate.wait(timeout=30)
                return listing()

            monkeypatch.setattr(repository, "model_folders", hang)
            for _ in range(3):
                with pytest.raises(TimeoutError, match=r"has taken more than 0\.05 s: check its volume"):
                    await models.refresh()
            assert len(calls) == 1
            assert "check its volume" in models.unreadable
            assert models.ready
            assert _default(models) == 1
            gate.set()
            async with asyncio.timeout(20):
                while models.unreadable:
                    await models.change.wait()
        assert len(log_events.named("repository_unreadable")) == 1

    async def test_a_version_that_hangs_while_it_loads_does_not_stop_its_model(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """Newer versions are served, aliases are followed, and what loads too late is not served."""
        publish()
        load, metrics = Loader(gated="2"), Metrics()
        async with open_models(load_engine=load, patience_s=0.05, metrics=metrics) as models:
            publish()
            await models.refresh()
            await log_events.wait_for("version_overdue")
            assert b"lenserve_repository_problems 1.0" in generate_latest(metrics.registry)
            publish()
            await models.refresh()
            assert _default(models) == 3
            repository.set_alias(NAME, "stable", 2)
            await models.refresh()
            assert models.get(NAME).problem == "its alias 'stable' names version 2, which is still loading"
            repository.set_alias(NAME, "stable", 1)
            await models.refresh()
            assert _default(models) == 1
            load.gate.set()
            await log_events.wait_for("version_unloaded", times=3)
            assert [each.version for each in models.statuses()] == [1]
            assert b"lenserve_repository_problems 0.0" in generate_latest(metrics.registry)
        (overdue,) = log_events.named("version_overdue")
        assert overdue.version == 2

    async def test_loads_that_hang_leave_the_threads_of_the_event_loop_free(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Also during the first scan: token files and counters need them."""
        publish()
        load = Loader()
        async with open_models(load_engine=load):
            assert all(name.startswith("load") for name in load.threads)
            assert load.threads

    async def test_a_version_that_loads_late_is_served_then(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Without another scan, and without loading it twice."""
        publish()
        load = Loader(gated="2")
        async with open_models(load_engine=load, patience_s=0.05) as models:
            publish()
            await models.refresh()
            assert _default(models) == 1
            load.gate.set()
            async with asyncio.timeout(20):
                while _default(models) != 2:
                    await models.change.wait()
            await models.refresh()
            assert len(load.engines) == 2

    async def test_folders_are_not_read_on_the_event_loop(
        self, publish: Publish, open_models: OpenModels, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not those of refused versions either: a volume that hangs must not stop calls."""
        folder = publish(lie=True).folder
        scan, threads = os.scandir, []

        def scandir(path: str | Path) -> Any:  # noqa: ANN401 - its type is private
            threads.extend([threading.current_thread()] * (str(path) == str(folder)))
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)
        async with open_models() as models:
            await models.refresh()
            assert models.get(NAME).refused
        assert len(threads) > 1
        assert threading.main_thread() not in threads

    async def test_other_content_under_a_served_number_is_refused(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """What was loaded is served; the log has both digests, once."""
        served = publish()
        async with open_models() as models:
            shutil.rmtree(served.folder)
            other = publish(rotate=1)
            other.folder.rename(served.folder)
            for _ in range(2):
                await models.refresh()
            with models.lease(NAME) as version:
                assert version.bundle.digest == served.digest
            (problem,) = log_events.named("model_problem")
            assert problem.reason == (
                f"version 1 has manifest {other.digest[:12]} on disk, but {served.digest[:12]} was loaded "
                "and is served: publish a new version instead of changing one"
            )

    async def test_a_manifest_that_becomes_invalid_is_a_problem_until_it_is_restored(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The next start would refuse the version. It is read once for each change."""
        served = publish()
        manifest = served.folder / MANIFEST_FILE
        content, read, reads = manifest.read_bytes(), repository.read_manifest, []

        def read_manifest(model: str, version: int) -> Bundle:
            reads.append(version)
            return read(model, version)

        async with open_models() as models:
            monkeypatch.setattr(repository, "read_manifest", read_manifest)
            manifest.write_bytes(content[:-5])
            for _ in range(3):
                await models.refresh()
            assert len(reads) == 1
            assert "version 1 has an invalid manifest on disk" in models.get(NAME).problem
            assert f"but {served.digest[:12]} was loaded and is served" in models.get(NAME).problem
            assert models.ready
            manifest.write_bytes(content)
            await models.refresh()
            assert not models.get(NAME).problem

    @pytest.mark.parametrize("damage", [lambda file: os.truncate(file, MAX_MANIFEST_BYTES + 1), _make_pipe])
    async def test_a_manifest_that_is_not_read_is_a_problem_too(
        self, publish: Publish, open_models: OpenModels, damage: Callable[[Path], None]
    ) -> None:
        """It is too large, or something else than a file: the next start would refuse it."""
        manifest = publish().folder / MANIFEST_FILE
        async with open_models() as models:
            damage(manifest)
            await models.refresh()
            assert "version 1 has an invalid manifest on disk" in models.get(NAME).problem
            assert models.ready

    async def test_a_link_that_leads_back_to_itself_costs_only_what_it_stands_for(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """A model or a version; the message says what to do, and other folders are still looked at."""
        served, root = publish(), repository.root
        (root / "loop").symlink_to("loop")
        (served.folder.parent / "2").symlink_to("2")
        shutil.copytree(served.folder, served.folder.parent / "v3")
        remedy = "remove or correct the symbolic link that leads back to itself"
        async with open_models() as models:
            assert models.ready
            assert _default(models) == 1
            assert remedy in models.get(NAME).refused[2]
            assert models.get("loop").problem.startswith(f"{root / 'loop'} cannot be read: ")
            assert remedy in models.get("loop").problem
        assert any("v3: is not a version" in event.reason for event in log_events.named("folder_overlooked"))

    async def test_folders_of_any_depth_are_looked_at(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """A refused version may contain thousands of folders in each other; it costs only itself."""
        publish()
        deep = publish(lie=True).folder / "deeper"
        _make_deep(deep, depth=1_200)
        try:
            async with open_models() as models:
                await models.refresh()
                assert _default(models) == 1
                assert "golden probabilities differ" in models.get(NAME).refused[2]
                assert not models.get(NAME).problem
        finally:  # too deep for shutil, and so for pytest
            await asyncio.to_thread(subprocess.check_call, ["rm", "-r", deep])

    async def test_a_folder_that_turns_out_to_be_no_model_is_forgotten(
        self,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It could not be read, and is empty: it does not count, also with strict readiness."""
        (repository.root / "other").mkdir()
        scan = repository.versions
        monkeypatch.setattr(repository, "versions", _deny(scan, "other"))
        async with open_models(readiness=Readiness(is_strict=True)) as models:
            assert "denied" in models.why_not_ready
            monkeypatch.setattr(repository, "versions", scan)
            await models.refresh()
            assert models.ready
            assert not models.names()

    async def test_folders_that_only_look_like_versions_or_models_are_named_once(
        self, publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """With what to do."""
        root = repository.root
        for name in ("v1", "001"):
            shutil.copytree(publish().folder, root / NAME / name)
        shutil.copytree(root / NAME, root / "my model")
        shutil.copytree(root / NAME, root / "group" / "digits")
        async with open_models() as models:
            await models.refresh()
            assert models.names() == [NAME]
        reasons = {event.reason.removeprefix(f"{root}/") for event in log_events.named("folder_overlooked")}
        assert len(log_events.named("folder_overlooked")) == len(reasons)
        plain = "is not a version, because its name is not a plain number: rename it to 1"
        deep = "looks like a model, but is one level too deep: move it into the repository itself"
        assert {f"{NAME}/v1: {plain}", f"{NAME}/001: {plain}", f"group/digits: {deep}"} <= reasons
        assert any(reason.startswith("my model: is not a model, because of its name") for reason in reasons)

    async def test_concurrent_refreshes_load_a_version_once(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """They wait for each other."""
        load = Loader()
        async with open_models(load_engine=load) as models:
            publish()
            await asyncio.gather(*(models.refresh() for _ in range(5)))
            assert len(load.engines) == 1


class TestLoadAndUnload:
    """Loading and unloading on request."""

    async def test_an_unloaded_model_stays_so_until_it_is_loaded_again(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """A refresh does not load it, not even a new version; other models stay."""
        publish()
        publish("shapes")
        async with open_models() as models:
            with models.lease(NAME) as held:
                await models.unload(NAME)
                publish()
                await models.refresh()

                with pytest.raises(ModelUnavailable, match="it was unloaded on request"):
                    models.lease(NAME)
                assert models.ready
                assert models.lease("shapes").number == 1
                assert await _runs(held)
            await models.load(NAME)

            assert models.lease(NAME).number == 2

    async def test_a_server_is_ready_when_all_models_were_unloaded(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """It works as requested."""
        publish()
        async with open_models() as models:
            await models.unload(NAME)

            assert models.ready
            assert models.statuses() == []

    async def test_a_model_whose_folder_hangs_can_be_unloaded(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
        log_events: LogEvents,
    ) -> None:
        """And stays so when it can be read again; the version that loads then is unloaded too."""
        publish()
        async with open_models(patience_s=0.05) as models:
            publish()
            gate = threading.Event()
            monkeypatch.setattr(repository, "versions", _hang(repository.versions, NAME, gate))
            await models.refresh()
            await asyncio.wait_for(models.unload(NAME), 10)
            await log_events.wait_for("version_unloaded")
            gate.set()
            await log_events.wait_for("version_unloaded", times=2)
            assert not models.get(NAME).versions
            assert models.get(NAME).problem == "it was unloaded on request"
            await models.load(NAME)
            assert _default(models) == 2

    async def test_a_folder_that_hangs_does_not_stop_loading_another_model(
        self,
        publish: Publish,
        repository: Repository,
        open_models: OpenModels,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """By name."""
        publish("a")
        publish("b")
        async with open_models() as models:
            gate = threading.Event()
            monkeypatch.setattr(repository, "versions", _hang(repository.versions, "a", gate))
            publish("b")
            await asyncio.wait_for(models.load("b"), 10)
            assert _default(models, "b") == 2
            gate.set()

    async def test_a_load_refreshes_at_once(self, publish: Publish, open_models: OpenModels) -> None:
        """A version that was just published is served when load returns."""
        publish()
        async with open_models() as models:
            publish()
            await models.load(NAME)

            assert models.lease(NAME).number == 2

    async def test_a_failed_load_says_why_and_the_old_version_stays(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Also the second time: a load loads refused versions again."""
        publish()
        async with open_models() as models:
            publish(lie=True)
            for _ in range(2):
                with pytest.raises(
                    ModelUnavailable, match="failed to load 'colours': version 2 was refused: "
                ):
                    await models.load(NAME)
            assert models.lease(NAME).number == 1

    async def test_a_load_whose_caller_was_cancelled_is_completed(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """Version 2 is loaded and its alias 1 is loading: neither is lost or loaded again."""
        load = Loader(gated="1")
        async with open_models(load_engine=load) as models:
            for alias in ("canary", "stable"):
                repository.set_alias(NAME, alias, publish().version)
            callers = [asyncio.ensure_future(models.load(NAME)) for _ in range(3)]
            await load.until_entered()
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
            last = asyncio.ensure_future(models.load(NAME))
            load.gate.set()
            await last

            assert len(load.engines) == 2
            assert sorted(models.get(NAME).versions) == [1, 2]
            assert models._loads.loaded == set(models.get(NAME).versions.values())

    async def test_a_failed_load_whose_caller_was_cancelled_is_logged(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """The log is the only place for the reason."""
        load, unhandled = Loader(), []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with open_models(load_engine=load) as models:
            publish(lie=True)
            load.gate.clear()
            caller = asyncio.ensure_future(models.load(NAME))
            await load.until_entered()
            caller.cancel()
            await asyncio.wait([caller])
            load.gate.set()

            failed = await log_events.wait_for("load_failed")
        assert failed.reason.startswith("failed to load 'colours': version 1 was refused: golden")
        assert failed.exc_info is None
        gc.collect()
        assert not unhandled

    async def test_a_model_that_cannot_be_read_cannot_be_loaded(
        self, publish: Publish, open_models: OpenModels, repository: Repository
    ) -> None:
        """Its aliases are damaged."""
        publish()
        (repository.root / NAME / "aliases.json").write_text("[]")
        async with open_models() as models:
            with pytest.raises(ModelUnavailable, match=r"failed to load 'colours': .*aliases"):
                await models.load(NAME)

    async def test_an_unknown_model_can_be_neither_loaded_nor_unloaded(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """The repository has no folder of that name."""
        publish()
        async with open_models() as models:
            with pytest.raises(
                UnknownModel, match="failed to load 'shapes': the repository has no such model"
            ):
                await models.load("shapes")
            with pytest.raises(UnknownModel, match="there is no model 'shapes'"):
                await models.unload("shapes")


async def _runs(version: Version) -> bool:
    """Return whether a leased version still answers."""
    output = await version.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
    return output.probabilities.shape == (1, 3)


class TestEnd:
    """Leaving `async with` at any moment leaves nothing behind."""

    async def test_draining_ends_readiness_and_nothing_else(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Requests are still answered, and watchers are notified."""
        publish()
        async with open_models() as models:
            change = models.change
            models.drain()
            assert change.is_set()
            assert models.draining
            assert not models.ready
            assert _default(models) == 1

    async def test_leaving_in_the_middle_of_a_load_leaves_no_task_and_no_thread(
        self, publish: Publish, repository: Repository, open_models: OpenModels
    ) -> None:
        """Version 2 is loaded but not served yet, and its alias 1 is loading: both are closed."""
        publish()
        publish()
        repository.set_alias(NAME, "canary", 1)
        load = Loader(gated="1")
        async with open_models(load_engine=load, scanned=False) as models:
            await load.until_entered()
            assert len(load.engines) == 1
            assert [(each.version, each.state) for each in models.statuses()] == [(1, State.LOADING)]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        load.gate.set()
        assert not _engine_threads()

    async def test_leaving_while_an_old_version_is_leased_closes_it_too(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Requests that still hold it get ModelUnavailable instead of waiting forever."""
        publish()
        async with open_models() as models:
            lease = models.lease(NAME)
            old = lease.__enter__()
            publish()
            await models.refresh()
            assert _default(models) == 2
        with pytest.raises(ModelUnavailable, match="unloaded"):
            await old.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
        lease.__exit__(None, None, None)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not _engine_threads()


class TestCheckEngine:
    """After a failure on valid input an engine is proven again."""

    async def test_an_engine_that_passes_is_kept(self, publish: Publish, open_models: OpenModels) -> None:
        """One failure does not break an engine that works."""
        publish()
        async with open_models() as models:
            with models.lease(NAME) as version:
                await models.check_engine(version)
            assert models.ready
            assert not models.broken

    @pytest.mark.parametrize(
        ("error", "skew", "reason"),
        [
            (EngineError("the device is lost"), 0.0, "the device is lost"),
            (None, 0.5, "golden probabilities differ by 0.5, the tolerance is 0.002"),
        ],
    )
    async def test_an_engine_that_fails_its_golden_examples_is_broken(
        self, publish: Publish, open_models: OpenModels, error: Exception | None, skew: float, reason: str
    ) -> None:
        """The server is not ready, watchers are notified, and requests are rejected with the reason."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            load.engines[0].error, load.engines[0].skew = error, skew
            change = models.change
            with models.lease(NAME) as version:
                await models.check_engine(version)
            assert change.is_set()
            assert models.broken
            assert not models.ready
            assert not models.get(NAME).ready
            assert [each.state for each in models.statuses()] == [State.BROKEN]
            with pytest.raises(ModelUnavailable, match=f"version 1 of model 'colours' is broken: {reason}"):
                models.lease(NAME).__enter__()

    async def test_a_network_that_does_not_finish_a_batch_is_broken(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Calls would wait for it while the probes say that all is well."""
        publish()
        load = Loader()
        async with open_models(load_engine=load, hung_run_s=0.05) as models:
            with models.lease(NAME) as version:
                load.engines[0].gate.clear()
                run = version.batcher.submit(np.zeros((1, 8, 8, 3), np.uint8))
                async with asyncio.timeout(20):
                    while models.ready:
                        await models.change.wait()
                load.engines[0].gate.set()
                await run
            reason = "a batch has not ended after 0.05 s"
            assert models.why_broken == f"version 1 of model 'colours' is broken: {reason}"

    async def test_many_failures_at_once_are_one_check(
        self, publish: Publish, open_models: OpenModels
    ) -> None:
        """Fifty failed requests start one proof."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            with models.lease(NAME) as version:
                before = load.engines[0].runs
                await asyncio.gather(*(models.check_engine(version) for _ in range(50)))
                one_check = load.engines[0].runs - before
            assert one_check == 4  # one size to warm, three golden examples one by one

    async def test_an_engine_is_not_broken_because_files_are_missing(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents
    ) -> None:
        """Without its golden examples a version cannot be checked, which proves nothing against it."""
        bundle = publish()
        async with open_models() as models:
            shutil.rmtree(bundle.folder)
            with models.lease(NAME) as version:
                await models.check_engine(version)
            assert models.ready
            assert log_events.named("version_unchecked")

    @pytest.mark.parametrize(
        "error",
        [
            ModelUnavailable("the device server does not answer"),
            OutOfMemory("the device is out of memory for 4 images"),
            ZeroDivisionError("unexpected"),
        ],
    )
    async def test_a_check_that_cannot_be_completed_is_logged(
        self, publish: Publish, open_models: OpenModels, log_events: LogEvents, error: Exception
    ) -> None:
        """It proves nothing against the engine, and leaves no unhandled exception."""
        publish()
        load = Loader()
        async with open_models(load_engine=load) as models:
            load.engines[0].error = error
            with models.lease(NAME) as version:
                await models.check_engine(version)
            assert version.check is not None
            assert version.check.exception() is None
            assert models.ready
            (record,) = log_events.named("version_unchecked")
            assert record.reason == str(error)
            assert bool(record.exc_info) is isinstance(error, ZeroDivisionError)


def _default(models: Models, name: str = NAME) -> int:
    with models.lease(name) as version:
        return version.number


def _model_ready(models: Models) -> dict[str, float]:
    """The metric lenserve_model_ready, by model."""
    family = models._loader.metrics.model_ready
    return {name: value.value for (name,), value in family.items()}


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _publish_with_a_fourth_label(repository: Repository, bundle: Bundle) -> None:
    def write(folder: Path) -> Description:
        shutil.copy(bundle.model_file, folder)
        golden = bundle.golden()
        write_golden(Golden(golden.images, np.pad(golden.probabilities, ((0, 0), (0, 1)))), folder)
        described = bundle.manifest.model_dump(exclude={"files"})
        return Description.model_validate({**described, "labels": (*bundle.manifest.labels, "violet")})

    repository.publish(bundle.model, write)


def _states(metrics: Metrics) -> set[tuple[str, str]]:
    (family,) = [each for each in metrics.registry.collect() if each.name == "lenserve_version_state"]
    return {(sample.labels["version"], sample.labels["state"]) for sample in family.samples}


def _engine_threads(*, most: int = 0) -> list[threading.Thread]:
    """Threads of engines that are alive after all but `most` had time to end."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("engine")]
    for thread in threads[: len(threads) - most]:
        thread.join(timeout=20)
    return [thread for thread in threads if thread.is_alive()]


async def test_all_processes_refresh_at_the_same_times(
    repository: Repository, open_models: OpenModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At multiples of the interval on the machine's clock, whenever the watch begins."""
    interval_s = 0.5
    looked_s: list[float] = []
    enough = threading.Event()

    def models() -> list[str]:
        looked_s.append(time.monotonic())
        if len(looked_s) == 4:
            enough.set()
        return []

    monkeypatch.setattr(repository, "model_folders", models)
    await asyncio.sleep(1.5 * interval_s - time.monotonic() % interval_s)
    async with open_models(poll_interval_s=interval_s):
        assert await asyncio.to_thread(enough.wait, 20)

    assert looked_s[0] % interval_s >= interval_s / 2
    assert min(at_s % interval_s for at_s in looked_s[1:]) < interval_s / 4


def _unservable(stable: int) -> str:
    return f"its alias 'stable' names version {stable}, which cannot be served: publish it, or move the alias"


def _deny(scan: Scan, model: str) -> Scan:
    """A scan that may not read the folder of one model."""

    def denied(name: str) -> list[int]:
        if name == model:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return scan(name)

    return denied


def _make_deep(folder: Path, *, depth: int) -> None:
    """Make folders in each other, whose path becomes too long for the system."""
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=descriptor)
        below = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def _wait(gate: threading.Event) -> list[str]:
    assert gate.wait(timeout=30)
    return []


def _hang(scan: Scan, model: str, gate: threading.Event) -> Scan:
    """A scan that hangs in the folder of one model while the gate is closed."""

    def hanging(name: str) -> list[int]:
        if name == model:
            assert gate.wait(timeout=30)
        return scan(name)

    return hanging


class _Noted(OnnxEngine):
    """Records where it was closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.closed_in: list[threading.Thread] = []

    def close(self) -> None:
        self.closed_in.append(threading.current_thread())
        super().close()
