"""The version before the served one stays loaded for a while."""

import shutil
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.bundle.operations import roll_back
from serving.engine.onnx import OnnxEngine
from serving.models.registry import Models
from tests.colours import Publish
from tests.serving.engines import CPU
from tests.serving.log_events import LogEvents
from tests.serving.open_models import OpenModels
from tests.serving.until import until

NAME = "colours"
LONG_S = 3600.0


class CountingLoader:
    """Loads real networks, and counts them."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, file: Path) -> OnnxEngine:
        """Load an ONNX file."""
        self.loads += 1
        return OnnxEngine.load(file, device=CPU, threads=1, max_batch_size=4)


def _served(models: Models) -> list[int]:
    return sorted(models.get(NAME).versions)


async def test_going_back_loads_nothing(
    publish: Publish, repository: Repository, open_models: OpenModels, log_events: LogEvents
) -> None:
    """The same version answers again, back and forth; while it is warm, it is not served by its number."""
    publish()
    loader = CountingLoader()
    async with open_models(load_engine=loader, keep_warm_s=LONG_S) as models:
        first = models.lease(NAME)
        publish(rotate=1)
        repository.set_alias(NAME, "stable", 2)
        await models.refresh()
        second = models.lease(NAME)
        assert (first.number, second.number, _served(models)) == (1, 2, [2])
        roll_back(repository, NAME)
        await models.refresh()
        assert models.lease(NAME) is first
        repository.set_alias(NAME, "stable", 2)
        await models.refresh()
        assert models.lease(NAME) is second
        assert loader.loads == 2
        assert len(log_events.named("version_kept_warm")) == 3
        assert not log_events.named("version_unloaded")


async def test_a_warm_version_whose_files_were_replaced_is_loaded_again(
    publish: Publish, repository: Repository, open_models: OpenModels, tmp_path: Path
) -> None:
    """Its number names another network since a backup was restored and a version published."""
    publish()
    repository.set_alias(NAME, "stable", 1)
    shutil.copytree(repository.root, tmp_path / "backup")
    publish(rotate=1)
    async with open_models(keep_warm_s=LONG_S) as models:
        for version in (2, 1):
            repository.set_alias(NAME, "stable", version)
            await models.refresh()
        shutil.rmtree(repository.root)
        shutil.copytree(tmp_path / "backup", repository.root)
        published = publish(rotate=2)
        repository.set_alias(NAME, "stable", 2)
        await models.refresh()
        assert models.lease(NAME).bundle.digest == published.digest


async def test_a_warm_version_is_unloaded_after_its_time(
    publish: Publish, open_models: OpenModels, log_events: LogEvents
) -> None:
    """Then going back loads it again."""
    publish()
    async with open_models(keep_warm_s=0.01) as models:
        publish()
        await models.refresh()
        await until(lambda: bool(log_events.named("version_unloaded")))
        assert _served(models) == [2]


async def test_a_third_version_is_loaded_only_after_the_warm_one_has_gone(
    publish: Publish, open_models: OpenModels, log_events: LogEvents
) -> None:
    """So memory never holds more than the two versions of a swap."""
    publish()
    async with open_models(keep_warm_s=LONG_S) as models:
        for _ in range(2):
            publish()
            await models.refresh()
        kept = [record.version for record in log_events.named("version_kept_warm")]
        gone = [record.version for record in log_events.named("version_unloaded")]
        assert (kept, gone, _served(models)) == ([1, 2], [1], [3])


async def test_a_broken_version_is_not_kept(
    publish: Publish, open_models: OpenModels, log_events: LogEvents
) -> None:
    """Going back to it would help nobody."""
    publish()
    async with open_models(keep_warm_s=LONG_S) as models:
        models.lease(NAME).broken = "its engine failed"
        publish()
        await models.refresh()
        await until(lambda: bool(log_events.named("version_unloaded")))


@pytest.mark.parametrize("keep_warm_s", [0.0, LONG_S])
async def test_a_model_that_is_unloaded_keeps_nothing_warm(
    publish: Publish, open_models: OpenModels, log_events: LogEvents, keep_warm_s: float
) -> None:
    """Unloading gives all memory back."""
    publish()
    async with open_models(keep_warm_s=keep_warm_s) as models:
        publish()
        await models.refresh()
        await models.unload(NAME)
        await until(lambda: len(log_events.named("version_unloaded")) == 2)
