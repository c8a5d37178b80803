"""`stable` follows the verdicts of runs, and gives way to operators."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import training.champion.promote
from serving.bundle import Repository
from serving.bundle.operations import history, remove_alias, roll_back
from serving.bundle.store import Store
from serving.bundle.stored_repository import StoredRepository
from serving.errors import BundleError
from tests.colours import Publish, write_colours
from tests.serving.bundle.fake_s3 import FakeS3
from training.champion.judge import ChampionCheck, Verdict
from training.champion.promote import keep_champion, promote
from training.champion.result import CHAMPION_RUNS, Challenge

MODEL = "colours"


def _challenge(
    verdict: Verdict, champion: int | None, *, stable: int | None = None, forced: bool = False
) -> Challenge:
    """By default as runs recorded it that did not say what `stable` named."""
    return Challenge(verdict=verdict, champion=champion, stable=stable, forced=forced)


def _run(repository: Repository, publish: Publish, challenge: Challenge) -> Verdict | None:
    """What a run does when it publishes."""
    keep_champion(repository, MODEL, challenge)
    return promote(repository, MODEL, publish().version, challenge, pytest.fail)


def test_a_first_version_becomes_stable(repository: Repository, publish: Publish) -> None:
    """So that a later candidate is not served for want of the alias."""
    assert _run(repository, publish, _challenge("promote", None)) == "promote"
    assert repository.aliases(MODEL) == {"stable": 1}


def test_a_candidate_leaves_stable_on_the_champion(repository: Repository, publish: Publish) -> None:
    """Also where there was no alias: the version that was served gets it before the candidate appears."""
    publish()
    assert _run(repository, publish, _challenge("candidate", 1)) == "candidate"
    assert repository.aliases(MODEL) == {"stable": 1}
    assert _run(repository, publish, _challenge("promote", 1)) == "promote"
    assert repository.aliases(MODEL) == {"stable": 3}
    assert roll_back(repository, MODEL).version == 1


def test_a_forced_version_is_promoted_and_the_log_says_so(repository: Repository, publish: Publish) -> None:
    """Whatever the verdict."""
    publish()
    assert _run(repository, publish, _challenge("refuse", 1, forced=True)) == "promote"
    assert history(repository, MODEL)[-1].reason == "promoted by its run, by --force"


def test_an_operator_who_moved_stable_meanwhile_wins(repository: Repository, publish: Publish) -> None:
    """The run compared with version 1, which is not the champion any more."""
    for _ in range(2):
        publish()
    repository.set_alias(MODEL, "stable", 2)
    warnings: list[str] = []
    version = publish().version
    assert promote(repository, MODEL, version, _challenge("promote", 1), warnings.append) == "candidate"
    assert repository.aliases(MODEL) == {"stable": 2}
    assert warnings[0] == (
        "version 3 stays a candidate: when it was compared, 'stable' named version 1, and now it names "
        "version 2; run the recipe again to compare it with that"
    )


def test_a_resumed_run_does_not_undo_a_rollback(repository: Repository, publish: Publish) -> None:
    """It may have died after the promotion, and be resumed days later."""
    publish()
    challenge = _challenge("promote", 1)
    assert _run(repository, publish, challenge) == "promote"
    roll_back(repository, MODEL)
    assert promote(repository, MODEL, 2, challenge, pytest.fail) == "promote"
    assert repository.aliases(MODEL) == {"stable": 1}


def test_the_first_of_two_runs_is_promoted_and_the_other_one_stays_a_candidate(
    repository: Repository, publish: Publish
) -> None:
    """Both were compared with the same champion, or both found none; neither undoes what the other did."""
    for champion in (None, 1):
        before = repository.aliases(MODEL)
        first, second = publish().version, publish().version
        challenge, warnings = _challenge("promote", champion), list[str]()
        assert promote(repository, MODEL, first, challenge, pytest.fail) == "promote"
        assert promote(repository, MODEL, second, challenge, warnings.append) == "candidate"
        assert f"now it names version {first}; run the recipe again" in warnings[0]
        assert repository.aliases(MODEL) != before
        assert repository.aliases(MODEL) == {"stable": first}
        repository.set_alias(MODEL, "stable", 1)


class _PromotedMeanwhile(Repository):
    """Another run promotes its version just before this one locks the folder."""

    @contextmanager
    def changing(self, model: str, *, shared: bool = False) -> Iterator[Path]:
        """Lock it."""
        Repository(self.root).set_alias(model, "stable", 1)
        with super().changing(model, shared=shared) as folder:
            yield folder


def test_the_champion_does_not_replace_what_another_run_promotes_at_the_same_time(
    repository: Repository, publish: Publish
) -> None:
    """Of two runs without an alias, the slower one would go back to the version before."""
    for _ in range(2):
        publish()
    keep_champion(_PromotedMeanwhile(repository.root), MODEL, _challenge("candidate", 2))
    assert repository.aliases(MODEL) == {"stable": 1}
    assert [change.version for change in history(repository, MODEL)] == [1]


_AGAIN = "run the recipe again to compare it with that"


@pytest.mark.parametrize("verdict", ["promote", "candidate"])
def test_a_version_that_is_published_after_the_comparison_stays_served(
    verdict: Verdict, repository: Repository, publish: Publish
) -> None:
    """Without `stable` it is served at once, and the run's version was never compared with it."""
    for _ in range(2):
        publish()  # the second one by an operator, while the run makes its report
    challenge, warnings = _challenge(verdict, 1, stable=0), list[str]()
    keep_champion(repository, MODEL, challenge)
    assert repository.aliases(MODEL) == {"stable": 2}
    assert promote(repository, MODEL, publish().version, challenge, warnings.append) == "candidate"
    assert repository.aliases(MODEL) == {"stable": 2}
    said = "when it was compared, 'stable' did not exist and version 1 was served, and now it names version 2"
    assert warnings == ([f"version 3 stays a candidate: {said}; {_AGAIN}"] if verdict == "promote" else [])


def test_a_removed_stable_is_not_undone(repository: Repository, publish: Publish) -> None:
    """The newest version is served since then, and stays the default."""
    for _ in range(2):
        publish()
    repository.set_alias(MODEL, "stable", 1)
    challenge, warnings = _challenge("promote", 1, stable=1), list[str]()
    remove_alias(repository, MODEL, "stable")
    keep_champion(repository, MODEL, challenge)
    assert promote(repository, MODEL, publish().version, challenge, warnings.append) == "candidate"
    assert repository.aliases(MODEL) == {"stable": 2}
    assert "'stable' named version 1, and now it names version 2" in warnings[0]


def test_an_operator_who_names_the_served_version_meanwhile_wins(
    repository: Repository, publish: Publish
) -> None:
    """It was served before too, but only for want of an alias. What another run names so is no such will."""
    publish()
    challenge, warnings = _challenge("promote", 1, stable=0), list[str]()
    repository.set_alias(MODEL, "stable", 1)
    keep_champion(repository, MODEL, challenge)
    version = publish().version
    assert promote(repository, MODEL, version, challenge, warnings.append) == "candidate"
    assert "did not exist and version 1 was served, and now it names version 1" in warnings[0]


def test_a_candidate_of_another_run_does_not_stop_a_promotion(
    repository: Repository, publish: Publish
) -> None:
    """It has named the same champion, which is still served."""
    publish()
    assert _run(repository, publish, _challenge("candidate", 1, stable=0)) == "candidate"
    assert _run(repository, publish, _challenge("promote", 1, stable=0)) == "promote"
    assert repository.aliases(MODEL) == {"stable": 3}


def test_a_first_version_gives_way_to_one_that_an_operator_published_first(
    repository: Repository, publish: Publish
) -> None:
    """Before the run looks at what is served, or after that."""
    challenge = _challenge("promote", None, stable=0)
    for kept in (True, False):
        there = Repository(repository.root / str(kept))
        for _ in range(2):
            there.publish(MODEL, lambda folder: write_colours(folder, rotate=0, lie=False))
            if kept:
                keep_champion(there, MODEL, challenge)
        warnings: list[str] = []
        assert promote(there, MODEL, 2, challenge, warnings.append) == "candidate"
        assert "'stable' did not exist, and now it " in warnings[0]
        assert ("names version 1" if kept else "does not exist, but version 1 does") in warnings[0]


def test_of_a_damaged_newest_version_the_newest_intact_one_is_kept(
    repository: Repository, publish: Publish
) -> None:
    """A server that starts serves it. If all are damaged, servers that have loaded the newest keep it."""
    for _ in range(3):
        publish()
    challenge = _challenge("candidate", 3, stable=0)
    for damaged, kept in ((3, 2), (2, 1), (1, 3)):
        (repository.folder(MODEL, damaged) / "model.onnx").write_bytes(b"changed")
        keep_champion(repository, MODEL, challenge)
        assert repository.aliases(MODEL) == {"stable": kept}
        remove_alias(repository, MODEL, "stable")
    reasons = [change.reason for change in history(repository, MODEL)]
    assert reasons[0] == (
        "the version that was served before a newer one was published; version 3 is damaged"
    )
    assert _run(repository, publish, _challenge("candidate", 3, stable=0, forced=True)) == "promote"


def test_nothing_is_published_beside_a_champion_that_does_not_run(
    repository: Repository, publish: Publish
) -> None:
    """Servers that cannot load it would serve the candidate; with an older `stable`, others would go back."""
    for _ in range(2):
        publish()
    fails = ChampionCheck(name=CHAMPION_RUNS, passed=False, detail="no operator Foo", at_best="candidate")
    challenge = Challenge(verdict="candidate", champion=2, stable=0, checks=(fails,))
    with pytest.raises(BundleError) as refused:
        _run(repository, publish, challenge)
    assert str(refused.value) == (
        "nothing is published: version 2 of model 'colours', the champion, does not run on this machine, and "
        "without the alias 'stable' a server that cannot load it would serve the new version. Choose the "
        "version to serve with `lenserve models promote colours@VERSION`, then repeat the run with --resume"
    )
    assert (repository.versions(MODEL), repository.aliases(MODEL)) == ([1, 2], {})
    forced = challenge.model_copy(update={"forced": True})
    assert _run(repository, publish, forced) == "promote"
    repository.set_alias(MODEL, "stable", 2)
    assert _run(repository, publish, challenge) == "candidate"
    assert repository.aliases(MODEL) == {"stable": 2}


def test_a_change_of_another_alias_in_a_store_does_not_keep_a_run_from_setting_its_own(
    tmp_path: Path,
) -> None:
    """The store refuses the first attempt; without `stable` the candidate would be served."""
    s3 = FakeS3()
    there, operator = (
        StoredRepository(Store("s3://bucket", lambda _url: (s3, "bucket")), tmp_path / name)
        for name in ("run", "operator")
    )
    there.publish(MODEL, lambda folder: write_colours(folder, rotate=0, lie=False))
    changed: list[str] = []

    def change(name: str, path: str) -> None:
        if name == "pipe_file" and path.endswith("history.jsonl") and not changed:
            changed.append(path)
            operator.set_alias(MODEL, "canary", 1)

    s3.before = change
    keep_champion(there, MODEL, _challenge("candidate", 1, stable=0))
    assert there.aliases(MODEL) == {"canary": 1, "stable": 1}


def test_a_log_that_is_damaged_while_a_run_publishes_leaves_a_candidate(
    repository: Repository, publish: Publish
) -> None:
    """The version is there, so the run ends with a warning that names the file, and not with an error."""
    publish()
    repository.set_alias(MODEL, "stable", 1)
    (repository.root / MODEL / "aliases.history.jsonl").write_text("damaged\n")
    warnings: list[str] = []
    assert promote(repository, MODEL, publish().version, _challenge("promote", 1), warnings.append) == (
        "candidate"
    )
    assert "version 2 stays a candidate: " in warnings[0]
    assert "aliases.history.jsonl: line 1" in warnings[0]
    assert repository.aliases(MODEL) == {"stable": 1}


@pytest.mark.parametrize("stable", [0, None])
@pytest.mark.parametrize("verdict", ["promote", "candidate"])
def test_a_run_that_is_killed_while_it_publishes_leaves_the_old_or_the_new_state(
    verdict: Verdict, stable: int | None, repository: Repository, publish: Publish, tmp_path: Path
) -> None:
    """A candidate is served at no time, although there was no alias; resuming does what is left."""
    publish()
    challenge = _challenge(verdict, 1, stable=stable)

    def work(there: Repository) -> None:
        keep_champion(there, MODEL, challenge)
        published = there.publish(MODEL, lambda folder: write_colours(folder, rotate=0, lie=False))
        promote(there, MODEL, published.version, challenge, pytest.fail)

    served = set()
    for point in count(1):
        there = Repository(tmp_path / str(point))
        shutil.copytree(repository.root, there.root)
        survived = not _is_killed(work, there, at_line=point)
        versions, aliases = there.versions(MODEL), there.aliases(MODEL)
        served.add(aliases.get("stable", versions[-1]))
        assert [there.read(MODEL, version).version for version in versions] == versions  # whole ones
        assert {change.alias: change.version for change in history(there, MODEL)} == aliases
        if versions == [1, 2]:
            assert promote(there, MODEL, 2, challenge, pytest.fail) == verdict
            assert there.aliases(MODEL) == {"stable": 2 if verdict == "promote" else 1}
        if survived:
            break
    assert point > 5
    assert served == ({1, 2} if verdict == "promote" else {1})


def _is_killed(work: Callable[[Repository], None], repository: Repository, *, at_line: int) -> bool:
    """Do the work in a child that kills itself at a line of promote.py, that is, between two steps."""
    lines = count(1)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ANN401 - as sys.settrace has it
        del argument
        if frame.f_code.co_filename != training.champion.promote.__file__:
            return None
        if event == "line" and next(lines) == at_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    child = os.fork()
    if not child:
        try:
            sys.settrace(trace)
            work(repository)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
