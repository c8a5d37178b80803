"""Changes of aliases are noticed at once, whatever other models do."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.models.alias_watch import AliasWatch
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
    async with open_models(keep_warm_s=LONG_S, alias_interval_s=0.001) as models:
        repository.set_alias(NAME, "stable", 1)
        await until(lambda: models.lease(NAME).number == 1)
        repository.set_alias(NAME, "stable", 2)
        await until(lambda: models.lease(NAME).number == 2)


async def test_a_change_of_aliases_is_reported_once(
    publish: Publish, repository: Repository, folder_threads: FolderThreads
) -> None:
    """So is the first look, because nobody knows what was read; a hundred models are looked at each time."""
    names = [f"m{number:03d}" for number in range(150)]
    for name in (names[0], names[149]):
        publish(name)
    watch = AliasWatch(repository, folder_threads)
    assert [await watch.changed(names) for _ in range(4)] == [names[:100], names[100:], [], []]
    for name in (names[0], names[149]):
        repository.set_alias(name, "stable", 1)
    assert [await watch.changed(names) for _ in range(4)] == [[names[0]], [names[149]], [], []]
    repository.aliases_file(names[0]).unlink()
    assert await watch.changed(names) == [names[0]]


async def test_a_folder_that_hangs_delays_no_other_aliases(
    publish: Publish, repository: Repository, folder_threads: FolderThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those after it, nor those that changed in the same look; later it is looked at again."""
    names, gate, find = ["a", "b", "c"], threading.Event(), repository.aliases_file
    for name in names:
        publish(name)
    watch = AliasWatch(repository, folder_threads, late_s=0.02)
    assert await watch.changed(names) == names

    def hang(name: str) -> Path:
        assert name != "b" or gate.wait(timeout=30)
        return find(name)

    monkeypatch.setattr(repository, "aliases_file", hang)
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
