"""Publishing into an object store: all of a version or nothing, one number for one publisher."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serving.bundle import Repository
from serving.bundle.mirror import Mirror
from serving.bundle.operations import (
    history,
    newest_usable,
    prune,
    remove,
    remove_alias,
    remove_model,
    roll_back,
)
from serving.bundle.store import Store
from serving.bundle.stored_repository import StoredRepository, open_repository
from serving.errors import AliasMoved, BundleError, StoreError, UnknownModel, UsageError
from tests.object_store import ObjectStore, free_port, object_store
from tests.serving.bundle.fake_s3 import FakeS3
from tests.serving.bundle.publishing import Write


@pytest.fixture
def s3() -> FakeS3:
    """An empty S3."""
    return FakeS3()


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The same by moto and s3fs, where they are installed."""
    with object_store(monkeypatch, free_port()) as store:
        yield store


def store_of(files: FakeS3 | MemoryFileSystem) -> Store:
    """The store of a repository in it."""
    return Store("s3://bucket/models", lambda _url: (files, "bucket/models"))


def opened(s3: FakeS3, folder: Path) -> StoredRepository:
    """The repository as a publisher opens it, with copies in a folder of its own."""
    return StoredRepository(store_of(s3), folder)


def assert_sound(s3: FakeS3, folder: Path) -> list[int]:
    """Every version can be read, and is copied by a server's mirror. Returns their numbers."""
    repository = opened(s3, folder)
    numbers = repository.versions("animals")
    for number in numbers:
        repository.read("animals", number)
    mirror = Mirror(store_of(s3), folder / "server", kept_versions=100)
    assert not mirror.look().problems
    assert mirror.repository.versions("animals") == numbers
    return numbers


def test_a_published_version_is_read_by_others(s3: FakeS3, write: Write, tmp_path: Path) -> None:
    """Numbers count up; the manifest is the last object that is written."""
    first = opened(s3, tmp_path / "a").publish("animals", write)
    second = opened(s3, tmp_path / "b").publish("animals", write)

    assert (first.version, second.version) == (1, 2)
    assert s3.calls[-1] == ("pipe_file", "bucket/models/animals/2/manifest.json")
    other = opened(s3, tmp_path / "c")
    assert other.models() == ["animals"]
    assert other.read("animals", 2).digest == second.digest
    with pytest.raises(UnknownModel, match="has no version 3 of model 'animals'"):
        other.read("animals", 3)


@pytest.mark.parametrize("hook", ["before", "after"])
def test_a_fault_at_any_request_leaves_all_of_a_version_or_nothing(
    write: Write, tmp_path: Path, hook: str
) -> None:
    """A refused request and a lost answer; then the publisher tries again, and numbers are not used twice."""
    whole = FakeS3()
    opened(whole, tmp_path / "whole").publish("animals", write)
    for fail_at in range(len(whole.calls)):
        s3 = FakeS3()
        folder = tmp_path / f"{fail_at}"

        def fail(name: str, path: str, s3: FakeS3 = s3, fail_at: int = fail_at) -> None:
            if len(s3.calls) == fail_at + 1:
                raise ConnectionResetError(f"{name} {path}")

        setattr(s3, hook, fail)
        try:
            published = [opened(s3, folder / "a").publish("animals", write).version]
        except StoreError:
            published = []
        s3.before = s3.after = lambda _name, _path: None
        numbers = assert_sound(s3, folder / "b")
        assert set(published) <= set(numbers)
        claimed = sum(path.startswith("bucket/models/animals/.versions/") for path in s3.content)

        again = opened(s3, folder / "c").publish("animals", write)

        assert again.version >= max(1, claimed)
        assert assert_sound(s3, folder / "d") == [*numbers, again.version]


def test_two_publishers_at_once_get_two_numbers(s3: FakeS3, write: Write, tmp_path: Path) -> None:
    """Both see the same last number; the store refuses one claim."""
    versions: list[int] = []
    barrier = threading.Barrier(2)
    met: set[int] = set()

    def meet(name: str, path: str) -> None:
        me = threading.get_ident()
        if name == "pipe_file" and path.endswith(".versions/1") and me not in met:
            met.add(me)
            barrier.wait(timeout=30)

    s3.before = meet
    threads = [
        threading.Thread(
            target=lambda name=name: versions.append(
                opened(s3, tmp_path / name).publish("animals", write).version
            )
        )
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert sorted(versions) == [1, 2]
    assert assert_sound(s3, tmp_path / "c") == [1, 2]


def test_a_number_whose_version_was_removed_is_not_used_again(
    s3: FakeS3, write: Write, tmp_path: Path
) -> None:
    """Its claim stays."""
    repository = opened(s3, tmp_path)
    repository.publish("animals", write)
    s3.rm("bucket/models/animals/1", recursive=True)

    assert repository.publish("animals", write).version == 2


def test_a_whole_model_is_removed_and_its_numbers_are_not_used_again(
    s3: FakeS3, write: Write, tmp_path: Path
) -> None:
    """Servers have copies of versions, which they take for those of the same number."""
    repository = opened(s3, tmp_path / "a")
    repository.publish("animals", write), repository.publish("animals", write)
    repository.set_alias("animals", "stable", 1)

    assert remove_model(opened(s3, tmp_path / "b"), "animals") == [1, 2]

    assert (repository.models(), dict(repository.aliases("animals"))) == ([], {})
    assert repository.publish("animals", write).version == 3
    assert list(history(repository, "animals")) == []


def test_aliases_and_their_history_are_those_of_a_directory(s3: FakeS3, write: Write, tmp_path: Path) -> None:
    """Set, roll back and remove, each from another machine."""
    repository = opened(s3, tmp_path / "a")
    repository.publish("animals", write), repository.publish("animals", write)

    repository.set_alias("animals", "stable", 1, reason="first")
    opened(s3, tmp_path / "b").set_alias("animals", "stable", 2, expect=1)
    roll_back(opened(s3, tmp_path / "c"), "animals")
    assert repository.aliases("animals") == {"stable": 1}
    remove_alias(repository, "animals", "stable")

    assert repository.aliases("animals") == {}
    changes = [(each.action, each.before, each.version) for each in history(repository, "animals")]
    assert changes == [
        ("set", None, 1),
        ("set", 1, 2),
        ("rollback", 2, 1),
        ("remove", 1, None),
    ]


def test_of_two_operators_one_changes_the_alias_and_the_other_is_told(
    s3: FakeS3, write: Write, tmp_path: Path
) -> None:
    """The second has read the aliases before the first replaced them."""
    repository, other = opened(s3, tmp_path / "a"), opened(s3, tmp_path / "b")
    repository.publish("animals", write), repository.publish("animals", write)
    repository.set_alias("animals", "canary", 1)

    def change_between(name: str, path: str) -> None:
        if name == "pipe_file" and path.endswith("aliases.json"):
            s3.before = lambda _name, _path: None
            other.set_alias("animals", "stable", 2)

    s3.before = change_between
    with pytest.raises(AliasMoved, match="were changed by another operator meanwhile: nothing is changed"):
        repository.set_alias("animals", "stable", 1)

    assert repository.aliases("animals") == {"canary": 1, "stable": 2}
    assert history(repository, "animals")[-1].version == 2


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_published(
    write: Write, tmp_path: Path
) -> None:
    """Some stores that speak S3 overwrite."""
    s3 = FakeS3(ignores_conditions=True)

    with pytest.raises(StoreError, match=r"created twice: this store ignores If-None-Match"):
        opened(s3, tmp_path).publish("animals", write)

    assert not [path for path in s3.content if path.endswith("manifest.json")]


def test_a_file_system_without_conditional_writes_is_refused(write: Write, tmp_path: Path) -> None:
    """The base class of fsspec looks and then writes: two publishers could both find nothing."""
    repository = StoredRepository(store_of(MemoryFileSystem()), tmp_path)

    with pytest.raises(UsageError, match=r"of URLs only s3:// has the conditional writes"):
        repository.publish("animals", write)


def test_old_versions_are_pruned_and_their_numbers_stay_used(
    s3: FakeS3, write: Write, tmp_path: Path
) -> None:
    """The manifest goes first, so nobody reads half a version; also of one that was copied into the store."""
    repository = opened(s3, tmp_path / "a")
    for _ in range(4):
        repository.publish("animals", write)
    repository.set_alias("animals", "canary", 1)
    del s3.content["bucket/models/animals/.versions/4"]  # another program copied it

    assert prune(opened(s3, tmp_path / "b"), "animals", 2, dry_run=True) == [2]
    assert prune(opened(s3, tmp_path / "b"), "animals", 2) == [2]
    removed = [path for name, path in s3.calls if name.startswith("rm")]
    repository.set_alias("animals", "stable", 3)
    assert [change.served for change in history(repository, "animals")] == [None, 4]
    remove(repository, "animals", 4, confirmed=True)

    assert removed == ["bucket/models/animals/2/manifest.json", "bucket/models/animals/2"]
    assert assert_sound(s3, tmp_path / "c") == [1, 3]
    assert not [path for path in s3.content if "/animals/2/" in path or "/animals/4/" in path]
    assert repository.publish("animals", write).version == 5


def test_damaged_aliases_are_named_by_their_url(s3: FakeS3, write: Write, tmp_path: Path) -> None:
    """Also by commands that change them, which work on a copy. Nothing is changed, unless all is removed."""
    repository = opened(s3, tmp_path / "a")
    repository.publish("animals", write), repository.publish("animals", write)
    s3.content["bucket/models/animals/aliases.json"] = b"{"
    operations: tuple[Callable[[], object], ...] = (
        lambda: repository.aliases("animals"),
        lambda: repository.set_alias("animals", "stable", 1),
        lambda: roll_back(repository, "animals"),
        lambda: remove(repository, "animals", 1),
    )
    for operation in operations:
        with pytest.raises(BundleError, match=r"^s3://bucket/models/animals/aliases\.json: .*; repair it"):
            operation()
    assert s3.content.pop("bucket/models/animals/aliases.json") == b"{"
    s3.content["bucket/models/animals/aliases.history.jsonl"] = b"{}\n"
    with pytest.raises(BundleError, match=r"^s3://bucket/models/animals/aliases\.history\.jsonl: line 1: "):
        history(repository, "animals")
    s3.content["bucket/models/animals/aliases.json"] = b"{"
    assert remove_model(repository, "animals") == [1, 2]


def test_a_version_that_is_promoted_while_it_is_removed_stays(
    s3: FakeS3, write: Write, tmp_path: Path
) -> None:
    """The alias was set before the manifest was gone."""
    repository, other = opened(s3, tmp_path / "a"), opened(s3, tmp_path / "b")
    repository.publish("animals", write), repository.publish("animals", write)

    def promote_between(name: str, _path: str) -> None:
        if name == "rm_file":
            s3.before = lambda _name, _path: None
            other.set_alias("animals", "stable", 1)

    s3.before = promote_between
    with pytest.raises(AliasMoved, match="version 1 of model 'animals' is not removed: another operator"):
        remove(repository, "animals", 1, confirmed=True)

    assert assert_sound(s3, tmp_path / "c") == [1, 2]
    assert repository.aliases("animals") == {"stable": 1}


def test_a_version_that_is_removed_while_it_is_promoted_is_named_by_no_alias(
    s3: FakeS3, write: Write, tmp_path: Path
) -> None:
    """It was removed, and aliases were looked at, before the alias was set."""
    repository, other = opened(s3, tmp_path / "a"), opened(s3, tmp_path / "b")
    for _ in range(3):
        repository.publish("animals", write)
    repository.set_alias("animals", "stable", 2)

    def remove_between(name: str, path: str) -> None:
        if name == "pipe_file" and path.endswith("aliases.json"):
            s3.before = lambda _name, _path: None
            remove(other, "animals", 1, confirmed=True)

    s3.before = remove_between
    with pytest.raises(UnknownModel, match="version 1 of model 'animals' was removed by another operator"):
        repository.set_alias("animals", "stable", 1)

    assert repository.aliases("animals") == {"stable": 2}
    assert [each.version for each in history(repository, "animals")] == [2]
    assert assert_sound(s3, tmp_path / "c") == [2, 3]


def claimed_ago(s3: FakeS3, number: int, seconds: float) -> None:
    """Make the claim of a number older."""
    claim = f"bucket/models/animals/.versions/{number}"
    old = json.loads(s3.content[claim]) | {"at": time.time_ns() - int(seconds * 1e9)}
    s3.content[claim] = json.dumps(old).encode()


def test_the_next_publisher_removes_what_a_killed_one_left(s3: FakeS3, write: Write, tmp_path: Path) -> None:
    """A day after it claimed its number; not what another program copies into the store just now."""
    repository = opened(s3, tmp_path)
    for number in (1, 2):  # killed before the manifest
        repository.publish("animals", write)
        del s3.content[f"bucket/models/animals/{number}/manifest.json"]
    claimed_ago(s3, 1, 90_000)
    claimed_ago(s3, 2, 80_000)
    s3.content["bucket/models/animals/9/model.onnx"] = b"a copy that has begun"

    assert repository.publish("animals", write).version == 10

    left = {path.split("/")[3] for path in s3.content if path.startswith("bucket/models/animals/")}
    assert left == {".versions", "2", "9", "10"}


def test_a_directory_that_is_copied_keeps_its_numbers(s3: FakeS3, write: Write, tmp_path: Path) -> None:
    """The newest version was removed; the directory recorded its number, and so does the store."""
    local = Repository(tmp_path / "local")
    local.publish("animals", write), local.publish("animals", write)
    local.set_alias("animals", "stable", 1)
    remove(local, "animals", 2, confirmed=True)
    for path in local.root.rglob("*"):
        if path.is_file():
            key = f"bucket/models/{path.relative_to(local.root).as_posix()}"
            s3.content[key] = path.read_bytes()
    stored = opened(s3, tmp_path / "cache")

    assert stored.publish("animals", write).version == 3

    stored.set_alias("animals", "stable", 1)
    remove(stored, "animals", 3)
    for key, content in s3.content.items():
        back = tmp_path / "back" / key.removeprefix("bucket/models/")
        back.parent.mkdir(parents=True, exist_ok=True)
        back.write_bytes(content)

    assert Repository(tmp_path / "back").publish("animals", write).version == 4


def test_a_missing_package_for_s3_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server's installation has neither it nor a reason to know its name."""
    monkeypatch.setitem(sys.modules, "s3fs", None)  # Python's way to say that it is not installed

    with pytest.raises(StoreError, match=r"Install s3fs to access S3: in a checkout, pip install '\.\[s3\]'"):
        open_repository("s3a://bucket/models", tmp_path).models()  # no other test opens this one


def change_late(repository: StoredRepository, other: StoredRepository) -> None:
    """Change an alias that another operator changes meanwhile."""
    with repository.changing("animals") as folder:
        other.set_alias("animals", "stable", 2, expect=3)
        (folder / "aliases.json").write_text('{"stable": {"version": 1}}')


def test_s3fs_and_moto_agree_with_the_fake(moto: ObjectStore, write: Write, tmp_path: Path) -> None:
    """Conditional writes as S3 has them: publish, promote, lose a race, and be copied by a server."""
    repository = StoredRepository(Store(moto.url), tmp_path / "a")
    other = StoredRepository(Store(moto.url), tmp_path / "b")
    versions = [each.publish("animals", write).version for each in (repository, other, repository)]
    repository.set_alias("animals", "stable", 1)
    other.set_alias("animals", "stable", 3, expect=1)
    with pytest.raises(AliasMoved):
        change_late(repository, other)

    mirror = Mirror(Store(moto.url), tmp_path / "server")
    assert not mirror.look().problems

    assert versions == [1, 2, 3]
    assert mirror.repository.versions("animals") == [1, 2, 3]
    assert mirror.repository.aliases("animals") == {"stable": 2}
    assert [each.version for each in history(repository, "animals")] == [1, 3, 2]

    remove(repository, "animals", 3)

    assert other.versions("animals") == [1, 2]
    assert not [path for path in Store(moto.url).objects("animals") if path.startswith("animals/3/")]
    assert other.location("animals", 2) == f"{moto.url}/animals/2"


@pytest.mark.parametrize("all_requests", [True, False])
def test_while_a_store_does_not_answer_no_older_version_counts_as_the_served_one(
    s3: FakeS3, write: Write, tmp_path: Path, *, all_requests: bool
) -> None:
    """The served version would be removed, and a rollback would go too far; one failed request would do."""
    for _ in range(3):
        opened(s3, tmp_path / "a").publish("animals", write)
    failed: list[str] = []

    def refuse(name: str, path: str) -> None:
        if "/3/" in path and name != "find" and (all_requests or not failed):
            failed.append(path)
            raise OSError("503 Slow Down")

    operations: list[Callable[[Repository], object]] = [
        lambda there: newest_usable(there, "animals"),
        lambda there: newest_usable(there, "animals", to_show=True),
        lambda there: remove(there, "animals", 3),
        lambda there: roll_back(there, "animals"),
        lambda there: prune(there, "animals", 1),
        lambda there: there.set_alias("animals", "stable", 1),  # logs what was served
    ]
    s3.before = refuse
    for number, operation in enumerate(operations):
        failed.clear()
        with pytest.raises(StoreError, match=r"/animals/3/.* cannot be read: OSError: 503 Slow Down"):
            operation(opened(s3, tmp_path / str(number)))
    s3.before = lambda _name, _path: None
    assert assert_sound(s3, tmp_path) == [1, 2, 3]
    assert opened(s3, tmp_path / "b").aliases("animals") == {}
