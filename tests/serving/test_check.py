"""`lenserve serve --check`: what would be served, and why not the rest."""

import errno
import threading
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.check import check
from serving.errors import UsageError
from serving.server import check_files
from serving.settings import ServerSettings
from tests.colours import Publish


async def test_a_sound_repository_passes(publish: Publish, repository: Repository) -> None:
    """Every model is served with its newest version."""
    publish("colours")
    publish("shapes")
    found = await check(ServerSettings(repository=repository.root))
    assert found.passed
    assert [(each.name, each.ready, each.problem) for each in found.models] == [
        ("colours", True, ""),
        ("shapes", True, ""),
    ]


async def test_what_would_not_be_served_is_named_with_its_reason(
    publish: Publish, repository: Repository
) -> None:
    """A version that lies, an alias to nothing, and folders that nobody would take."""
    publish("liars", lie=True)
    publish("colours")
    publish("colours", lie=True)
    (repository.root / "colours" / "v3").mkdir()
    publish("shapes")
    (repository.root / "shapes" / "aliases.json").write_text('{"stable": {"version": 7}}')
    found = await check(ServerSettings(repository=repository.root))
    models = {each.name: each for each in found.models}
    assert not found.passed
    assert not found.why_not_ready
    assert {name: each.ready for name, each in models.items()} == {
        "colours": True,
        "liars": False,
        "shapes": True,
    }
    states = {(each.model, each.version): each for model in found.models for each in model.versions}
    assert (states["colours", 1].state, states["colours", 1].is_default) == ("ready", True)
    assert "golden probabilities differ" in states["colours", 2].reason
    assert "golden probabilities differ" in states["liars", 1].reason
    assert models["shapes"].problem.startswith("its alias 'stable' names version 7, which cannot be served")
    assert any("v3" in line for line in found.overlooked)


async def test_a_required_model_that_is_missing_makes_it_fail(
    publish: Publish, repository: Repository
) -> None:
    """With the sentence that /readyz would give."""
    publish("colours")
    settings = ServerSettings(repository=repository.root, require_model=["shapes"])
    found = await check(settings)
    assert found.why_not_ready == "the required model 'shapes' is not in the repository"
    assert not found.passed


async def test_a_wrong_token_file_is_reported_as_at_start(repository: Repository, tmp_path: Path) -> None:
    """No server is needed to find it."""
    with pytest.raises(UsageError, match=r"tokens\.toml"):
        await check(ServerSettings(repository=repository.root, token_file=tmp_path / "tokens.toml"))


async def test_a_folder_for_captures_that_cannot_be_used_is_reported_as_at_start(
    repository: Repository, tmp_path: Path
) -> None:
    """A file in its place."""
    (tmp_path / "capture").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--capture-dir .*/capture cannot be used: File exists"):
        await check(ServerSettings(repository=repository.root, capture_dir=tmp_path / "capture"))


async def test_folders_that_hang_are_named_and_not_waited_for(
    publish: Publish, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is checked, and what was found elsewhere is said."""
    publish("colours")
    publish("shapes")
    (repository.root / "colours" / "v3").mkdir()
    gate, versions, overlooked = threading.Event(), Repository.versions, Repository.overlooked

    def hang(found: Repository, model: str) -> list[int]:
        assert model != "shapes" or gate.wait(timeout=30)
        return versions(found, model)

    def hang_too(found: Repository, model: str | None = None) -> list[str]:
        assert model != "shapes" or gate.wait(timeout=30)
        return overlooked(found, model)

    monkeypatch.setattr(Repository, "versions", hang)
    monkeypatch.setattr(Repository, "overlooked", hang_too)
    found = await check(ServerSettings(repository=repository.root), stuck_s=0.2)
    gate.set()
    assert not found.passed
    assert {each.name: each.ready for each in found.models} == {"colours": True, "shapes": False}
    assert "check its volume" in found.models[1].problem
    assert any("v3" in line for line in found.overlooked)


def test_a_repository_that_may_not_be_read_is_one_line(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent folder may be closed to this user."""

    def deny(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    settings = ServerSettings(repository=repository.root)
    monkeypatch.setattr(Path, "is_dir", deny)
    with pytest.raises(UsageError, match="cannot be read: Permission denied; let the user of this process"):
        check_files(settings)
