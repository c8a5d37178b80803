"""The repository on disk: publishing is atomic, damaged versions are rejected, leftovers are removed."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.bundle import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Description, Golden, Repository
from serving.bundle.repository import MAX_MANIFEST_BYTES
from serving.bundle.staging import sync
from serving.errors import BundleError, DigestMismatch, InvalidManifest, LenserveError, UnknownModel
from tests.serving.bundle.publishing import Publish, Write

Damage = Callable[[Path], object]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PROCESS_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
METRICS_FILE = "report/metrics.json"


# Listing


def test_a_missing_repository_has_no_models(repository: Repository) -> None:
    """A missing folder is an empty repository, not an error."""
    assert repository.models() == []
    assert repository.versions("animals") == []
    assert repository.aliases("animals") == {}


def test_versions_count_up_from_one(repository: Repository, publish: Publish) -> None:
    """Each model has its own numbers 1, 2, 3; names come sorted, versions oldest first."""
    assert [publish("plants").version for _ in range(3)] == [1, 2, 3]
    assert publish("animals").version == 1
    assert repository.models() == ["animals", "plants"]
    assert repository.versions("plants") == [1, 2, 3]


def test_versions_are_ordered_as_numbers(repository: Repository, publish: Publish) -> None:
    """10 is newer than 9, and a gap is never filled."""
    publish()
    for name in ("2", "9", "10"):
        (repository.root / "animals" / name).mkdir()
    assert repository.versions("animals") == [1, 2, 9, 10]
    assert publish().version == 11


@pytest.mark.parametrize(
    "name", ["0", "01", "-1", "1.0", "1 ", "\u0661", "v1", ".staging-x", "9" * 19, "latest"]
)
def test_folders_that_are_not_versions_are_ignored(
    name: str, repository: Repository, publish: Publish
) -> None:
    """Only plain positive integers are versions."""
    publish()
    (repository.root / "animals" / name).mkdir()
    assert repository.versions("animals") == [1]
    assert publish().version == 2


def test_files_that_look_like_versions_are_ignored(repository: Repository, publish: Publish) -> None:
    """A version is a folder."""
    publish()
    (repository.root / "animals" / "7").write_text("not a folder")
    assert repository.versions("animals") == [1]


@pytest.mark.parametrize("name", [".hidden", "-x", "a b", "a:b", "é", "x" * 129])
def test_folders_that_are_not_models_are_ignored(name: str, repository: Repository, publish: Publish) -> None:
    """lost+found and similar folders are not listed."""
    publish()
    (repository.root / name / "1").mkdir(parents=True)
    assert repository.models() == ["animals"]


def test_models_without_versions_are_not_listed(repository: Repository, publish: Publish) -> None:
    """An empty folder and a stray file are not models."""
    publish()
    (repository.root / "empty").mkdir()
    (repository.root / "README").write_text("hello")
    assert repository.models() == ["animals"]


# Reading


def test_a_published_version_is_read_back(
    repository: Repository, publish: Publish, description: Description, golden: Golden
) -> None:
    """A new reader finds the bundle that `publish` returned, with all its files."""
    published = publish()
    found = Repository(repository.root).read("animals", 1)
    assert found == published
    assert Description.model_validate(found.manifest.model_dump(exclude={"files"})) == description
    assert set(found.manifest.files) == {MODEL_FILE, GOLDEN_FILE, METRICS_FILE}
    assert found.model_file.read_bytes().startswith(b"\x08\x0a a network")
    assert found.golden().largest_difference(golden.probabilities) == 0
    assert found.folder == repository.folder("animals", 1)


def test_versions_differ_by_their_digest(
    repository: Repository, write: Write, publish: Publish, description: Description
) -> None:
    """Equal content has an equal digest; any difference changes it."""

    def write_other(folder: Path) -> Description:
        write(folder)
        return description.model_copy(update={"golden_tolerance": 1e-3})

    assert publish().digest == publish().digest
    assert repository.publish("animals", write_other).digest != repository.read("animals", 1).digest


@pytest.mark.parametrize(("model", "version"), [("animals", 2), ("animals", 0), ("plants", 1), ("README", 1)])
def test_reading_a_missing_version_raises_unknown_model(
    model: str, version: int, repository: Repository, publish: Publish
) -> None:
    """The error names both the model and the version."""
    publish()
    (repository.root / "README").write_text("a file is no model")
    with pytest.raises(UnknownModel, match=f"version {version} of model '{model}'"):
        repository.read(model, version)


@pytest.mark.parametrize("model", ["", ".", "..", "../animals", "animals/1", "a\0b", "a\n", "/etc"])
def test_names_never_leave_the_repository(model: str, repository: Repository, publish: Publish) -> None:
    """An invalid model name is neither read nor written."""
    publish()
    with pytest.raises(UnknownModel, match="is not a valid model name"):
        repository.read(model, 1)
    with pytest.raises(UnknownModel, match="is not a valid model name"):
        repository.versions(model)
    with pytest.raises(UnknownModel, match="is not a valid model name"):
        repository.aliases(model)
    with pytest.raises(BundleError, match="is not a valid model name"):
        publish(model)


def _flip_first(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _flip_last(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 0x80]))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [_flip_first, _flip_last, _truncate, _extend, _empty, Path.unlink, _replace_by_folder]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [MODEL_FILE, GOLDEN_FILE, METRICS_FILE])
def test_a_damaged_file_is_rejected_by_name(
    name: str, damage: Damage, repository: Repository, publish: Publish
) -> None:
    """A flipped bit, a missing or an extra byte, an empty or a missing file: the message names the file."""
    path = publish().folder / name
    damage(path)
    with pytest.raises(DigestMismatch) as refused:
        repository.read("animals", 1)
    assert str(path) in str(refused.value)


def test_a_wrong_size_is_reported_with_both_numbers(repository: Repository, publish: Publish) -> None:
    """The message has the size of the file and the expected size."""
    path = publish().model_file
    size_bytes = path.stat().st_size
    _truncate(path)
    with pytest.raises(DigestMismatch, match=f"{size_bytes - 1} bytes, its manifest says {size_bytes}"):
        repository.read("animals", 1)


@pytest.mark.parametrize("damage", [_flip_first, _empty, Path.unlink, _replace_by_folder])
def test_a_damaged_manifest_is_rejected_by_name(
    damage: Damage, repository: Repository, publish: Publish
) -> None:
    """The message names the file."""
    path = publish().folder / MANIFEST_FILE
    damage(path)
    with pytest.raises(InvalidManifest) as refused:
        repository.read("animals", 1)
    assert str(path) in str(refused.value)


def test_every_flipped_bit_of_a_manifest_is_detected(repository: Repository, publish: Publish) -> None:
    """The version is rejected with the name of a file, or its digest changes."""
    published = publish()
    path = published.folder / MANIFEST_FILE
    text = path.read_bytes()
    complaints = []
    for position in range(len(text)):
        path.write_bytes(text[:position] + bytes([text[position] ^ 1]) + text[position + 1 :])
        try:
            assert repository.read("animals", 1).digest != published.digest
        except BundleError as error:
            complaints.append(str(error))
    assert len(complaints) > len(text) / 2
    assert all(str(published.folder) in complaint for complaint in complaints)
    path.write_bytes(text)
    assert repository.read("animals", 1) == published


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\0b", ".", "report/../model.onnx", ""])
def test_an_edited_manifest_cannot_reach_outside(name: str, repository: Repository, publish: Publish) -> None:
    """File names that are not plain paths are rejected before any file is opened."""
    bundle = publish()
    path = bundle.folder / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = {"sha256": "0" * 64, "size_bytes": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(InvalidManifest, match="is not a plain path"):
        repository.read("animals", 1)


# Publishing


def test_a_directory_that_cannot_be_written_is_noticed_before_the_work(tmp_path: Path) -> None:
    """An import measures, and a run trains, before it publishes; nothing is left behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"file cannot be written: Not a directory; make room"):
        Repository(tmp_path / "file").prepare("animals")
    Repository(tmp_path / "new" / "repository").prepare("animals")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_published_versions_can_be_read_by_others(publish: Publish) -> None:
    """The server may run as another user than the training job, so the folder's mode is 0755."""
    assert stat.S_IMODE(publish().folder.stat().st_mode) == 0o755


def test_all_files_of_a_version_can_be_read_as_its_manifest_can(repository: Repository, write: Write) -> None:
    """The library for weights writes for its own user alone, and a server of another one must verify them."""

    def private(folder: Path) -> Description:
        description = write(folder)
        (folder / METRICS_FILE).chmod(0o600)
        return description

    folder = repository.publish("animals", private).folder

    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((folder / MANIFEST_FILE).stat().st_mode)}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), BundleError("a check failed")])
def test_a_write_that_raises_leaves_nothing_behind(
    error: BaseException, repository: Repository, write: Write, publish: Publish
) -> None:
    """Its exception is raised, and no version, staging folder or file is left."""
    publish()
    before = sorted(repository.root.rglob("*"))

    def fail(folder: Path) -> Description:
        write(folder)
        raise error

    with pytest.raises(type(error)):
        repository.publish("animals", fail)
    assert sorted(repository.root.rglob("*")) == before


def test_a_first_write_that_raises_makes_no_model(repository: Repository) -> None:
    """A model exists from its first version on."""

    def fail(folder: Path) -> Description:
        raise ValueError(folder.name)

    with pytest.raises(ValueError, match="staging"):
        repository.publish("animals", fail)
    assert repository.models() == []
    assert [path for path in repository.root.rglob("*") if path.name != "animals"] == []


@pytest.mark.parametrize("missing", [MODEL_FILE, GOLDEN_FILE])
def test_a_version_without_its_files_is_not_published(
    missing: str, repository: Repository, write: Write
) -> None:
    """The network and the golden examples are required; the message names the missing file."""

    def write_less(folder: Path) -> Description:
        described = write(folder)
        (folder / missing).unlink()
        return described

    with pytest.raises(InvalidManifest, match=f"files lack {missing}"):
        repository.publish("animals", write_less)
    assert repository.models() == []


def test_a_writer_does_not_write_the_manifest(repository: Repository, write: Write) -> None:
    """`publish` writes the manifest: a writer that does so raises an error."""

    def write_more(folder: Path) -> Description:
        (folder / MANIFEST_FILE).write_text("{}")
        return write(folder)

    with pytest.raises(InvalidManifest, match=MANIFEST_FILE):
        repository.publish("animals", write_more)


def test_abandoned_staging_folders_are_removed(repository: Repository, publish: Publish) -> None:
    """The next publisher removes leftovers of a dead one."""
    abandoned = publish().folder.parent / ".staging-dead"
    (abandoned / "report").mkdir(parents=True)
    (abandoned / MODEL_FILE).write_text("half a net")
    publish()
    assert not abandoned.exists()
    assert repository.versions("animals") == [1, 2]


def test_staging_folders_in_use_are_kept(repository: Repository, write: Write, publish: Publish) -> None:
    """A publisher that overtakes another does not remove its folder: both versions are complete."""

    def write_slowly(folder: Path) -> Description:
        assert publish().version == 1
        assert folder.is_dir()
        return write(folder)

    assert repository.publish("animals", write_slowly).version == 2
    assert [repository.read("animals", version).version for version in (1, 2)] == [1, 2]


def test_staging_folders_may_vanish_after_they_are_listed(repository: Repository, publish: Publish) -> None:
    """A publisher that fails removes its folder; another that has just listed it continues."""
    publish()
    (repository.root / "animals" / ".staging-gone").symlink_to("nowhere")  # listed, and cannot be opened
    assert publish().version == 2


def _start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, HERE / script, *map(str, arguments)],
        env=PROCESS_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _write_description(description: Description, folder: Path) -> Path:
    path = folder / "description.json"
    path.write_text(description.model_dump_json())
    return path


def test_concurrent_publishers_get_distinct_versions(
    repository: Repository, description: Description, tmp_path: Path
) -> None:
    """Three processes publish ten versions each: 1 to 30, each once, all valid."""
    described = _write_description(description, tmp_path)
    processes = [_start("publish_often.py", repository.root, described, 10) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    versions = []
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        own = json.loads(output)
        assert own == sorted(own)
        versions += own
    assert sorted(versions) == repository.versions("animals") == list(range(1, 31))
    for version in versions:
        repository.read("animals", version)
    assert not list(repository.root.rglob(".staging-*"))


# Dying


@pytest.mark.parametrize(
    ("operation", "fewest_points"),
    [("first", 80), ("next", 80), ("alias", 50), ("rollback", 15), ("remove", 15)],
)
def test_a_publisher_killed_at_any_line_leaves_the_old_state_or_the_new(
    operation: str,
    fewest_points: int,
    description: Description,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """After SIGKILL at any line every version is valid, aliases agree with their log, and others go on."""
    folder = tmp_path / "work"
    folder.mkdir()
    process = _start("kill_points.py", folder, _write_description(description, tmp_path), operation)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    deaths = json.loads(output)
    record_property("kill_points", deaths)
    assert deaths["points"] > fewest_points
    assert deaths["old"] > 0
    assert deaths["new"] > 0


def test_a_number_is_never_used_twice(repository: Repository, publish: Publish) -> None:
    """Servers and clients may remember the version that had it."""
    publish()
    shutil.rmtree(publish().folder)
    assert publish().version == 3
    shutil.rmtree(repository.root / "animals" / "3")
    assert Repository(repository.root).versions("animals") == [1]
    assert publish().version == 4


def test_the_last_file_is_touched_when_the_version_is_there(
    repository: Repository, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers look at it: what they see before must differ from what they see after."""
    publish()
    file = repository.model_folder("animals") / ".last_version"
    versions_before: list[list[int]] = []

    def mark_and_sync(path: Path) -> None:
        os.utime(file, (0, 0))
        versions_before.append(repository.versions("animals"))
        sync(path)

    monkeypatch.setattr("serving.bundle.repository.sync", mark_and_sync)
    publish()
    assert versions_before[-1] == [1, 2]
    assert file.stat().st_mtime > 0


# Hostile files


@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE])
def test_a_pipe_instead_of_a_file_is_rejected_at_once(
    name: str, repository: Repository, publish: Publish
) -> None:
    """Opening a pipe would wait for a writer for ever."""
    file = publish().folder / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BundleError, match=f"{name} cannot be read: it is a pipe, not a regular file"):
        repository.read("animals", 1)


def test_a_pipe_instead_of_aliases_is_rejected_at_once(repository: Repository, publish: Publish) -> None:
    """The same holds for aliases."""
    os.mkfifo(publish().folder.parent / "aliases.json")
    with pytest.raises(OSError, match="it is a pipe, not a regular file"):
        repository.aliases("animals")


def test_a_file_of_endless_size_is_not_read(repository: Repository, publish: Publish) -> None:
    """Its size is wrong already: this one would take hours."""
    os.truncate(publish().model_file, 2**43)
    with pytest.raises(DigestMismatch, match=f"has {2**43} bytes, its manifest says"):
        repository.read("animals", 1)


def test_a_manifest_of_endless_size_is_not_read_whole(repository: Repository, publish: Publish) -> None:
    """The message has the limit."""
    os.truncate(publish().folder / MANIFEST_FILE, MAX_MANIFEST_BYTES + 1)
    with pytest.raises(InvalidManifest, match=f"it has more than {MAX_MANIFEST_BYTES} bytes, the limit"):
        repository.read("animals", 1)


# Aliases


def test_aliases_point_at_versions(repository: Repository, publish: Publish) -> None:
    """Aliases are set, moved and added; a new reader sees them."""
    publish()
    publish()
    repository.set_alias("animals", "stable", 1)
    repository.set_alias("animals", "canary", 2)
    repository.set_alias("animals", "stable", 2)
    assert Repository(repository.root).aliases("animals") == {"stable": 2, "canary": 2}


def test_an_alias_needs_its_version(repository: Repository, publish: Publish) -> None:
    """Nothing is written if the version is missing."""
    publish()
    repository.set_alias("animals", "stable", 1)
    with pytest.raises(UnknownModel, match="version 2 of model 'animals'"):
        repository.set_alias("animals", "stable", 2)
    with pytest.raises(UnknownModel, match="version 1 of model 'plants'"):
        repository.set_alias("plants", "stable", 1)
    assert repository.aliases("animals") == {"stable": 1}
    assert not (repository.root / "plants").exists()


@pytest.mark.parametrize("alias", ["", "2", "007", "a/b", "..", "-x", "a b", "a\n", "x" * 129])
def test_an_alias_must_not_look_like_a_number(alias: str, repository: Repository, publish: Publish) -> None:
    """MODEL@2 means version 2, so such an alias is rejected."""
    publish()
    with pytest.raises(BundleError, match="is not a valid alias"):
        repository.set_alias("animals", alias, 1)
    assert repository.aliases("animals") == {}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"stable": 1}',
        b'{"stable": {"version": 0}}',
        b'{"a": {"version": 1, "x": 1}}',
    ],
)
def test_invalid_aliases_are_rejected_by_name(text: bytes, repository: Repository, publish: Publish) -> None:
    """aliases.json is validated like a manifest; versions can be read without it."""
    path = publish().folder.parent / "aliases.json"
    path.write_bytes(text)
    with pytest.raises(BundleError) as refused:
        repository.aliases("animals")
    assert str(path) in str(refused.value)
    assert repository.read("animals", 1).version == 1


def test_an_empty_version_raises_a_bundle_error(repository: Repository, publish: Publish) -> None:
    """An empty folder, such as an unfinished copy, raises a BundleError."""
    publish()
    (repository.root / "animals" / "2").mkdir()
    with pytest.raises(LenserveError, match=MANIFEST_FILE):
        repository.read("animals", 2)
