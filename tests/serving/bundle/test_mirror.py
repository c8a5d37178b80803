"""Copies of an object store: complete versions or none, whatever fails in between."""

import json
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from serving.bundle import MODEL_FILE, Repository
from serving.bundle.mirror import REMOVE_AFTER_S, Mirror
from serving.bundle.operations import remove
from serving.bundle.store import Store
from serving.errors import StoreError
from tests.serving.bundle.faulty_files import FaultyFiles
from tests.serving.bundle.publishing import Publish


class Copying:
    """A repository that serves as the store, and its mirror. `clock_s` is the mirror's time."""

    def __init__(self, source: Repository, folder: Path) -> None:
        self.source = source
        self.clock_s = 0.0
        self.files = FaultyFiles(LocalFileSystem())
        self.store = Store(f"file://{source.root}", lambda _url: (self.files, str(source.root)))
        self.mirror = self.restarted(folder)

    def restarted(self, folder: Path, *, kept_versions: int = 3) -> Mirror:
        """A mirror that remembers nothing."""
        return Mirror(self.store, folder, kept_versions=kept_versions, clock=lambda: self.clock_s)

    @property
    def copy(self) -> Repository:
        """What a server reads."""
        return self.mirror.repository


@pytest.fixture
def copying(repository: Repository, tmp_path: Path) -> Copying:
    """A mirror of the test's repository."""
    return Copying(repository, tmp_path / "cache")


def assert_same(copy: Repository, source: Repository) -> None:
    """All models, versions and aliases are equal, and every digest matches."""
    assert copy.models() == source.models()
    for model in source.models():
        assert copy.versions(model) == source.versions(model)
        assert copy.aliases(model) == source.aliases(model)
        for version in source.versions(model):
            assert copy.read(model, version).digest == source.read(model, version).digest


def test_a_look_copies_every_model_with_its_aliases(copying: Copying, publish: Publish) -> None:
    """The copy is a repository with the same versions, digests and aliases, and nothing is left over."""
    publish("animals"), publish("animals"), publish("plants")
    copying.source.set_alias("animals", "stable", 1)

    found = copying.mirror.look()

    assert_same(copying.copy, copying.source)
    assert [(each.model, each.version) for each in found.copied] == [
        ("animals", 1),
        ("animals", 2),
        ("plants", 1),
    ]
    assert not found.problems
    assert not list((copying.copy.root.parent / "incoming").iterdir())


def test_a_look_without_news_costs_one_listing(copying: Copying, publish: Publish) -> None:
    """Listings are what a store charges for."""
    publish()
    copying.source.set_alias("animals", "stable", 1)
    copying.mirror.look()
    copying.files.calls.clear()

    assert not copying.mirror.look().copied

    assert [name for name, _ in copying.files.calls] == ["find"]


def test_an_outage_at_any_call_leaves_sound_versions_and_the_next_look_completes_them(
    repository: Repository, publish: Publish, tmp_path: Path
) -> None:
    """Each version is complete or absent, and aliases name only what is there."""
    publish("animals"), publish("animals"), publish("plants")
    repository.set_alias("animals", "stable", 1)
    whole = Copying(repository, tmp_path / "whole")
    whole.mirror.look()
    calls = len(whole.files.calls)
    assert calls > 10

    for call in range(calls):
        copying = Copying(repository, tmp_path / f"cut{call}")
        copying.files.fail_from(call)
        try:
            assert copying.mirror.look().problems
        except StoreError:
            assert call in (0, 2)  # a listing: the second is after new aliases were read
        for model in copying.copy.models():
            for version in copying.copy.versions(model):
                copying.copy.read(model, version)
        assert set(copying.copy.aliases("animals").values()) <= set(copying.copy.versions("animals"))

        copying.files.recover()
        assert not copying.mirror.look().problems
        assert_same(copying.copy, repository)


def test_a_copy_that_was_interrupted_continues_where_it_was(copying: Copying, publish: Publish) -> None:
    """Files that were copied before the outage are not copied again."""
    publish()

    def refuse_metrics(name: str, path: str) -> None:
        if name == "get_file" and path.endswith("metrics.json"):
            raise ConnectionResetError("the connection was reset")

    copying.files.before = refuse_metrics
    assert "metrics.json cannot be read: ConnectionResetError" in copying.mirror.look().problems[0]
    copying.files.recover()
    copying.files.calls.clear()

    assert copying.mirror.look().copied

    copied = [Path(path).name for name, path in copying.files.calls if name == "get_file"]
    assert copied == ["metrics.json"]


def test_a_truncated_copy_is_refused_and_says_what_differs(copying: Copying, publish: Publish) -> None:
    """A proxy that closes early without an error: the digest notices."""
    publish()
    copying.files.cut_bytes = 7

    (problem,) = copying.mirror.look().problems

    assert f"the copy of file://{copying.source.root}/animals/1/" in problem
    assert "bytes, its manifest says" in problem
    assert copying.copy.versions("animals") == []


def test_a_damaged_version_is_copied_again_only_when_its_objects_change(
    copying: Copying, publish: Publish
) -> None:
    """Otherwise every look would transfer it."""
    model = publish().folder / MODEL_FILE
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + b"!")
    first = copying.mirror.look()
    copying.files.calls.clear()

    again = copying.mirror.look()

    assert first.problems == again.problems
    assert "SHA-256" in first.problems[0]
    assert [name for name, _ in copying.files.calls] == ["find"]
    model.write_bytes(whole)
    assert not copying.mirror.look().problems
    assert_same(copying.copy, copying.source)


def test_an_object_of_another_size_is_not_transferred(copying: Copying, publish: Publish) -> None:
    """The listing shows its size: nothing fills the disk."""
    with (publish().folder / MODEL_FILE).open("ab") as file:
        file.write(b"more")

    (problem,) = copying.mirror.look().problems

    assert "model.onnx has" in problem
    assert not [
        path for name, path in copying.files.calls if path.endswith(MODEL_FILE) and name == "get_file"
    ]


def test_a_version_without_its_manifest_does_not_exist_yet(copying: Copying, publish: Publish) -> None:
    """Publishers put the manifest last."""
    publish()
    manifest = publish().folder / "manifest.json"
    text = manifest.read_bytes()
    manifest.unlink()

    assert not copying.mirror.look().problems
    assert copying.copy.versions("animals") == [1]
    manifest.write_bytes(text)
    copying.mirror.look()
    assert copying.copy.versions("animals") == [1, 2]


def test_only_the_newest_versions_and_those_that_aliases_name_are_copied(
    copying: Copying, publish: Publish, tmp_path: Path
) -> None:
    """The copy is bounded, however many versions a store keeps."""
    for _ in range(5):
        publish()
    copying.source.set_alias("animals", "stable", 2)
    mirror = copying.restarted(tmp_path / "small", kept_versions=1)

    mirror.look()

    assert mirror.repository.versions("animals") == [2, 5]


def test_a_removed_version_leaves_the_copy_later_and_a_removed_alias_at_once(
    copying: Copying, publish: Publish
) -> None:
    """A server may be about to load it, or to go back to it."""
    publish("animals"), publish("animals")
    copying.source.set_alias("animals", "stable", 2)
    copying.mirror.look()
    remove(copying.source, "animals", 1, confirmed=True)
    (copying.source.model_folder("animals") / "aliases.json").unlink()

    copying.mirror.look()
    assert copying.copy.versions("animals") == [1, 2]
    assert copying.copy.aliases("animals") == {}
    copying.clock_s = REMOVE_AFTER_S - 1
    assert copying.mirror.look().removed == []
    copying.clock_s = REMOVE_AFTER_S
    assert copying.mirror.look().removed == ["animals@1"]
    assert copying.copy.versions("animals") == [2]


def test_an_empty_store_removes_nothing(copying: Copying, publish: Publish, tmp_path: Path) -> None:
    """A wrong bucket, a lost policy or a lifecycle rule do not stop a service."""
    publish()
    copying.mirror.look()
    copying.source.root.rename(tmp_path / "elsewhere")
    copying.clock_s = 10 * REMOVE_AFTER_S

    with pytest.raises(StoreError, match=r"has no versions: the copies of earlier ones stay"):
        copying.mirror.look()

    assert copying.copy.versions("animals") == [1]


def test_after_a_restart_a_damaged_copy_is_replaced(
    copying: Copying, publish: Publish, tmp_path: Path
) -> None:
    """A copy is not trusted because it is there."""
    publish()
    copying.mirror.look()
    model = copying.copy.folder("animals", 1) / MODEL_FILE
    model.write_bytes(b"rotten")

    restarted = copying.restarted(copying.copy.root.parent)
    assert [each.version for each in restarted.look().copied] == [1]

    assert_same(restarted.repository, copying.source)
    assert not restarted.look().copied


def test_a_number_that_names_another_version_now_is_copied_again(copying: Copying, publish: Publish) -> None:
    """A store that was emptied and filled anew counts from 1 again: the copy does not serve what was."""
    bundle = publish()
    copying.mirror.look()
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    manifest["provenance"]["recipe"] = "another"
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))

    copying.mirror.look()

    assert copying.copy.read("animals", 1).manifest.provenance.recipe == "another"


def test_aliases_that_name_a_version_published_after_the_listing_wait_for_it(
    copying: Copying, publish: Publish
) -> None:
    """A publisher may publish and promote between two requests of one look."""
    publish()
    copying.mirror.look()
    copying.source.set_alias("animals", "stable", 1)
    published = False

    def publish_between(name: str, _path: str) -> None:
        nonlocal published
        if name == "cat_file" and not published:  # the aliases, after the listing
            published = True
            publish()
            copying.source.set_alias("animals", "stable", 2)

    copying.files.before = publish_between
    copying.mirror.look()

    assert copying.copy.aliases("animals") == {"stable": 2}
    assert copying.copy.versions("animals") == [1, 2]


def test_a_version_larger_than_the_free_space_is_refused_before_the_transfer(
    copying: Copying, publish: Publish
) -> None:
    """The message has both numbers."""
    bundle = publish()
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    manifest["files"][MODEL_FILE]["size_bytes"] = 10**18
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))

    (problem,) = copying.mirror.look().problems

    assert "it has 1000000000000" in problem
    assert "there is room for" in problem
