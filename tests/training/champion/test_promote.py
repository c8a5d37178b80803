"""`stable` follows the verdicts of runs, and gives way to operators."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import training.champion.promote
from serving.bundle import Repository
from serving.bundle.operations import history, roll_back
from tests.colours import Publish, write_colours
from training.champion.judge import Verdict
from training.champion.promote import keep_champion, promote
from training.champion.result import Challenge

MODEL = "colours"


def _challenge(verdict: Verdict, champion: int | None, *, forced: bool = False) -> Challenge:
    return Challenge(verdict=verdict, champion=champion, forced=forced)


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
    """Another run promotes its version after this one has seen that there is no alias."""

    def aliases(self, model: str) -> dict[str, int]:
        """What was there, before the other run."""
        seen = dict(super().aliases(model))
        if not seen:
            Repository(self.root).set_alias(model, "stable", 2)
        return seen


def test_the_champion_does_not_replace_what_another_run_promotes_at_the_same_time(
    repository: Repository, publish: Publish
) -> None:
    """Of two runs without an alias, the slower one would go back to the version before."""
    for _ in range(2):
        publish()
    keep_champion(_PromotedMeanwhile(repository.root), MODEL, _challenge("candidate", 1))
    assert repository.aliases(MODEL) == {"stable": 2}
    assert [change.version for change in history(repository, MODEL)] == [2]


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


@pytest.mark.parametrize("verdict", ["promote", "candidate"])
def test_a_run_that_is_killed_while_it_publishes_leaves_the_old_or_the_new_state(
    verdict: Verdict, repository: Repository, publish: Publish, tmp_path: Path
) -> None:
    """A candidate is served at no time, although there was no alias; resuming does what is left."""
    publish()
    challenge = _challenge(verdict, 1)

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
