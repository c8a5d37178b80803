"""Publications and changes of aliases are noticed at once, whatever other models do."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.models.change_watch import ChangeWatch
from serving.models.folder_threads import FolderThreads
from tests.colours import Publish
from tests.serving.open_models import OpenModels
from tests.serving.until import until

NAME = "colours"
LONG_S = 3600.0


@pytest.fixture
async def folder_threads() -> AsyncIterator[FolderThreads]:
    """Threads that read folders."""
    threads = FolderThreads(parallel=1, late_s=0.01)
    yield threads
    await threads.close()


async def test_an_alias_that_moves_is_noticed_before_the_next_scan(
    publish: Publish, repository: Repository, open_models: OpenModels
) -> None:
    """The scan here is an hour away."""
    publish()
    publish()
    async with open_models(keep_warm_s=LONG_S, look_interval_s=0.001) as models:
        repository.set_alias(NAME, "stable", 1)
        await until(lambda: models.lease(NAME).number == 1)
        repository.set_alias(NAME, "stable", 2)
        await until(lambda: models.lease(NAME).number == 2)


async def test_a_version_that_is_published_is_noticed_before_the_next_scan(
    publish: Publish, open_models: OpenModels
) -> None:
    """The scan here is an hour away."""
    publish()
    async with open_models(look_interval_s=0.001) as models:
        publish()
        await until(lambda: models.lease(NAME).number == 2)


async def test_a_model_that_is_removed_is_unloaded_before_the_next_scan(
    publish: Publish, repository: Repository, open_models: OpenModels
) -> None:
    """Then another one of its name and numbers is served, which may come before that scan."""
    publish()
    publish("other")
    async with open_models(look_interval_s=0.001) as models:
        repository.remove_model(NAME)
        await until(lambda: models.names() == ["other"])
        published = publish(rotate=1)
        await models.refresh()
        assert models.lease(NAME).bundle.digest == published.digest


async def test_a_version_that_is_copied_in_is_left_to_the_next_scan(
    publish: Publish, repository: Repository, folder_threads: FolderThreads
) -> None:
    """More often than the scan, half of it would be seen, and refused."""
    publish()
    watch = ChangeWatch(repository, folder_threads)
    assert await watch.changed([NAME]) == [NAME]
    shutil.copytree(repository.folder(NAME, 1), repository.folder(NAME, 2))
    assert await watch.changed([NAME]) == []


async def test_a_change_during_a_refresh_is_noticed_after_it(
    publish: Publish, repository: Repository, open_models: OpenModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refresh has read the folder before, and the watch has looked meanwhile."""
    has_read, gate = threading.Event(), threading.Event()
    looks: list[str] = []
    read, find = repository.aliases, repository.files_of_changes

    def read_and_wait(name: str) -> Mapping[str, int]:
        aliases = read(name)
        has_read.set()
        assert gate.wait(timeout=30)
        return aliases

    def find_and_note(name: str) -> tuple[Path, Path]:
        looks.append(name)
        return find(name)

    publish()
    publish()
    async with open_models(look_interval_s=0.001) as models:
        monkeypatch.setattr(repository, "aliases", read_and_wait)
        monkeypatch.setattr(repository, "files_of_changes", find_and_note)
        refresh = asyncio.create_task(models.refresh())
        await until(has_read.is_set)
        repository.set_alias(NAME, "stable", 1)
        looks.clear()
        await until(lambda: len(looks) > 2)  # the first may have begun before the change
        gate.set()
        await refresh
        await until(lambda: models.lease(NAME).number == 1)


async def test_a_change_of_aliases_is_reported_once(
    publish: Publish, repository: Repository, folder_threads: FolderThreads
) -> None:
    """The first look reports every model: what was read before is not known. Each looks at a hundred."""
    names = [f"m{number:03d}" for number in range(150)]
    for name in (names[0], names[149]):
        publish(name)
    watch = ChangeWatch(repository, folder_threads)
    assert [await watch.changed(names) for _ in range(4)] == [names[:100], names[100:], [], []]
    for name in (names[0], names[149]):
        repository.set_alias(name, "stable", 1)
    assert [await watch.changed(names) for _ in range(4)] == [[names[0]], [names[149]], [], []]
    (repository.model_folder(names[0]) / "aliases.json").unlink()
    assert await watch.changed(names) == [names[0]]


async def test_a_folder_that_hangs_delays_no_other_aliases(
    publish: Publish, repository: Repository, folder_threads: FolderThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those after it, nor those that changed in the same look; later it is looked at again."""
    names, gate, find = ["a", "b", "c"], threading.Event(), repository.files_of_changes
    for name in names:
        publish(name)
    watch = ChangeWatch(repository, folder_threads, late_s=0.02)
    assert await watch.changed(names) == names

    def hang(name: str) -> tuple[Path, Path]:
        assert name != "b" or gate.wait(timeout=30)
        return find(name)

    monkeypatch.setattr(repository, "files_of_changes", hang)
    for name in names:
        repository.set_alias(name, "stable", 1)
    assert await watch.changed(names) == ["a"]
    assert [await watch.changed(names) for _ in range(2)] == [["c"], []]
    gate.set()
    found: list[str] = []
    async with asyncio.timeout(10):
        while not found:
            found = await watch.changed(names)
    assert found == ["b"]
