"""A server whose repository is a URL: real processes, failing stores, and a copy that is served meanwhile."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from serving.bundle import Repository
from serving.bundle.mirror import Mirror
from serving.bundle.store import Store
from serving.errors import UsageError
from serving.mirroring import MirrorThread, mirror_once, mirrored
from serving.settings import ServerSettings
from tests.colours import Publish
from tests.object_store import ObjectStore, free_port, object_store
from tests.servers import ServerProcess, StartServer
from tests.serving.bundle.faulty_files import FaultyFiles


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An S3 with an empty bucket."""
    with object_store(monkeypatch, free_port()) as store:
        yield store


def start(start_server: StartServer, url: str, cache: Path, *options: str) -> ServerProcess:
    """Run a server that looks at its store ten times a second."""
    own = ("--repository", url, "--repository-cache", str(cache), "--store-interval-s", "0.1")
    return start_server(*own, *options)


def test_new_versions_and_aliases_of_a_store_are_served(
    repository: Repository, publish: Publish, start_server: StartServer, tmp_path: Path
) -> None:
    """The supervisor alone copies, and all workers serve the copy."""
    publish()
    server = start(start_server, f"file://{repository.root}", tmp_path / "cache", "--workers", "2")

    publish()
    copied = server.wait_for("version_copied", version=2)
    server.wait_for("version_serving", version=2, times=2)
    repository.set_alias("colours", "stable", 1)
    server.wait_for("version_serving", version=1, times=4)

    assert len(copied) == 1
    assert server.stop() == 0


def test_a_server_starts_from_its_copy_and_serves_on_while_the_store_is_away(
    repository: Repository, publish: Publish, start_server: StartServer, tmp_path: Path
) -> None:
    """The log names the outage once, and its end; a version that was published meanwhile follows."""
    publish()
    url, away = f"file://{repository.root}", tmp_path / "away"
    start(start_server, url, tmp_path / "cache").stop()
    repository.root.rename(away)

    server = start(start_server, url, tmp_path / "cache")

    (problem,) = server.wait_for("store_problem")
    assert "has no versions: the copies of earlier ones stay" in str(problem["reason"])
    assert list(server.events("version_serving", version=1))
    away.rename(repository.root)
    publish()
    server.wait_for("version_serving", version=2)
    server.wait_for("store_recovered")
    assert len(list(server.events("store_problem"))) == 1


def test_a_server_without_a_copy_does_not_start_while_its_store_is_away(tmp_path: Path) -> None:
    """It would be ready and serve nothing. One line says what is wrong."""
    nobody = f"ftp://127.0.0.1:{free_port()}/models"  # the only protocol of fsspec alone that connects
    settings = ServerSettings(repository=nobody, repository_cache=tmp_path)

    with (
        pytest.raises(
            UsageError, match=rf"^{nobody} .*Connection refused; there is no earlier copy to serve"
        ),
        mirrored(settings),
    ):
        pass


def test_a_store_that_hangs_delays_a_server_with_a_copy_only_for_a_while(
    repository: Repository, publish: Publish, tmp_path: Path
) -> None:
    """The look goes on in its thread; the copy is served meanwhile."""
    publish()
    files = FaultyFiles(LocalFileSystem())
    store = Store("file://store", lambda _url: (files, str(repository.root)))
    Mirror(store, tmp_path).look()
    answer = threading.Event()
    files.before = lambda _name, _path: _wait(answer)

    with MirrorThread(Mirror(store, tmp_path), 3600, start_patience_s=0.01):
        assert not answer.is_set()
        answer.set()


def _wait(event: threading.Event) -> None:
    assert event.wait(timeout=30)


def test_check_reads_the_store(repository: Repository, publish: Publish, tmp_path: Path) -> None:
    """`serve --check` says what a server would serve now, not what it has copied once."""
    publish()
    settings = ServerSettings(repository=f"file://{repository.root}", repository_cache=tmp_path / "cache")
    mirror_once(settings)
    assert Repository(settings.repository_folder).versions("colours") == [1]
    (publish().folder / "model.onnx").write_bytes(b"damaged")

    with pytest.raises(UsageError, match=r"model\.onnx has 7 bytes"):
        mirror_once(settings)


def test_s3_is_followed_through_an_outage(
    repository: Repository, publish: Publish, start_server: StartServer, tmp_path: Path, s3: ObjectStore
) -> None:
    """With moto's server as S3: it serves, serves on without it, and gets what came meanwhile."""
    publish()
    s3.upload(repository.root)
    server = start(start_server, s3.url, tmp_path / "cache")
    assert list(server.events("version_serving", version=1))

    s3.stop()
    server.wait_for("store_problem")
    again = start(start_server, s3.url, tmp_path / "cache")
    assert list(again.events("version_serving", version=1))
    s3.start()
    publish()
    s3.upload(repository.root)

    for each in (server, again):
        each.wait_for("version_serving", version=2)
        assert each.stop() == 0
