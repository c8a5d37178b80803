"""Operators move aliases, look back, and remove versions, without losing each other's changes."""

import json
import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.bundle.operations import history, prune, remove, remove_alias, roll_back
from serving.bundle.who import who
from serving.errors import AliasMoved, BundleError, InvalidManifest, UnknownModel
from tests.serving.bundle.publishing import Publish

LOG = "animals/aliases.history.jsonl"

Moves = list[tuple[str, str, int | None, int | None]]


@pytest.fixture
def five(repository: Repository, publish: Publish) -> Repository:
    """A model with five versions."""
    for _ in range(5):
        publish()
    return repository


@pytest.fixture
def pinned(repository: Repository, publish: Publish) -> Repository:
    """The same, where `stable` names version 1 since before there was another."""
    publish()
    repository.set_alias("animals", "stable", 1)
    for _ in range(4):
        publish()
    return repository


def _moves(repository: Repository) -> Moves:
    changes = history(repository, "animals")
    return [(change.action, change.alias, change.before, change.version) for change in changes]


# The log


def test_every_change_is_a_line_that_says_who_and_why(five: Repository) -> None:
    """JSON lines, oldest first."""
    five.set_alias("animals", "stable", 2, reason="first one")
    five.set_alias("animals", "stable", 3)
    remove_alias(five, "animals", "stable", reason="the newest is fine")
    lines = [json.loads(line) for line in (five.root / LOG).read_text().splitlines()]
    assert [(line["action"], line["before"], line["version"]) for line in lines] == [
        ("set", None, 2),
        ("set", 2, 3),
        ("remove", 3, None),
    ]
    assert [line["reason"] for line in lines] == ["first one", "", "the newest is fine"]
    assert {line["by"] for line in lines} == {who()}
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert five.aliases("animals") == {}


def test_setting_what_is_set_changes_and_logs_nothing(five: Repository) -> None:
    """A repeated command is no change."""
    assert five.set_alias("animals", "stable", 2) is not None
    before = (five.root / LOG).read_bytes()
    assert five.set_alias("animals", "stable", 2) is None
    assert (five.root / LOG).read_bytes() == before


def test_what_an_editor_changed_is_found(five: Repository) -> None:
    """Also before the first command; a rollback goes to what the editor left."""
    aliases = five.root / "animals" / "aliases.json"
    aliases.write_text('{"stable": {"version": 1}}')
    assert _moves(five) == [("found", "stable", None, 1)]
    five.set_alias("animals", "stable", 2)
    aliases.write_text('{"stable": {"version": 4}}')
    assert _moves(five)[1:] == [("set", "stable", 1, 2), ("found", "stable", 2, 4)]
    assert roll_back(five, "animals").version == 2
    assert [move[0] for move in _moves(five)] == ["found", "set", "found", "rollback"]


@pytest.mark.parametrize("torn", [b'{"at": "2026-', b"\0\0\0"])
def test_half_a_line_at_the_end_is_overwritten(torn: bytes, five: Repository) -> None:
    """It is what a lost power supply leaves of a change that was not made."""
    five.set_alias("animals", "stable", 2)
    with (five.root / LOG).open("ab") as file:
        file.write(torn)
    five.set_alias("animals", "stable", 3)
    assert _moves(five) == [("set", "stable", None, 2), ("set", "stable", 2, 3)]


def test_a_damaged_line_is_named_and_nothing_is_changed(five: Repository) -> None:
    """The message says what to do about it."""
    five.set_alias("animals", "stable", 2)
    (five.root / LOG).write_text('{"at": 7}\n')
    with pytest.raises(BundleError, match=r"history\.jsonl: line 1: .*move the file away"):
        five.set_alias("animals", "stable", 3)
    assert five.aliases("animals") == {"stable": 2}


# Two operators


def test_an_alias_that_moved_is_not_overwritten(five: Repository) -> None:
    """The message has both versions; 0 means that there is no such alias."""
    five.set_alias("animals", "stable", 2, expect=0)
    with pytest.raises(AliasMoved, match="names version 2, expected version 1"):
        five.set_alias("animals", "stable", 3, expect=1)
    with pytest.raises(AliasMoved, match="names version 2, expected no such alias"):
        five.set_alias("animals", "stable", 3, expect=0)
    with pytest.raises(AliasMoved, match="does not exist, expected version 4"):
        five.set_alias("animals", "canary", 3, expect=4)
    with pytest.raises(AliasMoved, match="expected version 3"):
        roll_back(five, "animals", expect=3)
    with pytest.raises(AliasMoved, match="expected version 3"):
        remove_alias(five, "animals", "stable", expect=3)
    assert five.aliases("animals") == {"stable": 2}


def _promote(root: Path, version: int, barrier: BarrierType) -> bool:
    barrier.wait()
    try:
        Repository(root).set_alias("animals", "stable", version, expect=1)
    except AliasMoved:
        return False
    return True


def _start_promotion(
    root: Path, version: int, barrier: BarrierType, done: "multiprocessing.SimpleQueue[tuple[int, bool]]"
) -> None:
    done.put((version, _promote(root, version, barrier)))


def test_of_several_processes_that_expect_the_same_version_one_wins(five: Repository) -> None:
    """The others learn that they came too late; the log has the winner alone."""
    five.set_alias("animals", "stable", 1)
    context = multiprocessing.get_context("fork")
    barrier, done = context.Barrier(4), context.SimpleQueue()
    processes = [
        context.Process(target=_start_promotion, args=(five.root, version, barrier, done))
        for version in (2, 3, 4, 5)
    ]
    for process in processes:
        process.start()
    outcomes = dict(done.get() for _ in processes)
    for process in processes:
        process.join()
    (winner,) = [version for version, won in outcomes.items() if won]
    assert five.aliases("animals") == {"stable": winner}
    assert _moves(five)[1:] == [("set", "stable", 1, winner)]


# Rolling back


def test_rollbacks_go_further_back_each_time(pinned: Repository) -> None:
    """What was rolled back from is not the version before."""
    for version in (1, 3, 5):
        pinned.set_alias("animals", "stable", version)
    assert roll_back(pinned, "animals", recent_s=0).version == 3
    assert roll_back(pinned, "animals", recent_s=0).version == 1
    with pytest.raises(BundleError) as refused:
        roll_back(pinned, "animals", recent_s=0)
    assert str(refused.value) == (
        "alias 'stable' of model 'animals' cannot be rolled back: it names version 1 and named no other "
        "before that; choose one of 2, 4 with `lenserve models promote animals@VERSION`"
    )
    pinned.set_alias("animals", "stable", 4)
    assert roll_back(pinned, "animals", recent_s=0).version == 1


def test_rollbacks_past_the_first_version_that_was_named_do_not_go_forward_again(five: Repository) -> None:
    """Neither without an alias, nor after one that was set by hand."""
    gone_to = [roll_back(five, "animals", recent_s=0).version for _ in range(4)]
    assert gone_to == [4, 3, 2, 1]
    with pytest.raises(BundleError, match="cannot be rolled back"):
        roll_back(five, "animals", recent_s=0)
    five.set_alias("animals", "stable", 5)
    assert roll_back(five, "animals", recent_s=0).version == 1


def test_two_operators_who_answer_one_alarm_go_back_once(five: Repository) -> None:
    """The second one is told, and may insist."""
    for version in (1, 3, 5):
        five.set_alias("animals", "stable", version)
    roll_back(five, "animals")
    with pytest.raises(AliasMoved, match=r"was rolled back from version 5 to 3 by .* repeat with --expect 3"):
        roll_back(five, "animals")
    assert roll_back(five, "animals", expect=3).version == 1


@pytest.mark.parametrize("at", ["in 30 s", "of no zone"])
def test_a_clock_that_differs_does_not_let_two_operators_go_back_twice(at: str, five: Repository) -> None:
    """The other machine's clock is ahead, or this one's was set back; or another program wrote the line."""
    for version in (1, 3, 5):
        five.set_alias("animals", "stable", version)
    roll_back(five, "animals")
    *lines, last = (five.root / LOG).read_text().splitlines()
    ahead = datetime.now(UTC) + timedelta(seconds=30)
    other = ahead if at == "in 30 s" else datetime.now().astimezone().replace(tzinfo=None)
    written = json.dumps({**json.loads(last), "at": other.isoformat()})
    (five.root / LOG).write_text("\n".join([*lines, written, ""]))
    with pytest.raises(AliasMoved, match=r"was rolled back from version 5 to 3 by .* 0 s ago"):
        roll_back(five, "animals")
    assert roll_back(five, "animals", expect=3).version == 1


def test_a_log_whose_clock_goes_back_keeps_its_order(five: Repository) -> None:
    """Lines count in the order in which they were written."""
    for version in (1, 3, 5):
        five.set_alias("animals", "stable", version)
    lines = [json.loads(line) for line in (five.root / LOG).read_text().splitlines()]
    times = [line["at"] for line in reversed(lines)]
    rewritten = [{**line, "at": at} for line, at in zip(lines, times, strict=True)]
    (five.root / LOG).write_text("".join(json.dumps(line) + "\n" for line in rewritten))
    assert roll_back(five, "animals").version == 3


@pytest.mark.parametrize("lines_left", [0, 1, 2])
def test_a_log_that_lost_its_end_is_continued_from_what_is_served(five: Repository, lines_left: int) -> None:
    """As after a backup was restored: aliases.json counts, and the gap is noted as found."""
    for version in (1, 3, 5):
        five.set_alias("animals", "stable", version)
    lines = (five.root / LOG).read_text().splitlines(keepends=True)
    (five.root / LOG).write_text("".join(lines[:lines_left]))
    before = [None, 1, 3][lines_left]
    assert _moves(five)[lines_left:] == [("found", "stable", before, 5)]
    assert roll_back(five, "animals").version == (before or 4)
    assert five.aliases("animals") == {"stable": before or 4}


def test_without_an_alias_the_version_before_the_newest_becomes_stable(five: Repository) -> None:
    """The newest is served then, so going back is one command there too."""
    change = roll_back(five, "animals")
    assert (change.alias, change.before, change.version) == ("stable", None, 4)
    assert roll_back(five, "animals", expect=4).version == 3


def test_a_version_that_was_removed_is_skipped(five: Repository) -> None:
    """Rollback goes to the one before."""
    for version in (1, 2, 3):
        five.set_alias("animals", "stable", version)
    assert remove(five, "animals", 2, confirmed=True) == {"stable": 1}
    assert roll_back(five, "animals").version == 1


def test_a_rollback_without_an_alias_leaves_the_version_that_is_served(five: Repository) -> None:
    """That is the newest one that is not damaged, or that the removed alias named last."""
    (five.folder("animals", 5) / "model.onnx").write_bytes(b"changed")
    assert roll_back(five, "animals").version == 3
    five.set_alias("animals", "stable", 2)
    five.set_alias("animals", "stable", 4)
    remove_alias(five, "animals", "stable")
    assert roll_back(five, "animals").version == 2


def test_the_version_that_was_served_before_there_was_an_alias_is_the_way_back(
    publish: Publish, five: Repository
) -> None:
    """The log keeps its number: it may be newer than the alias. Removing it needs a confirmation."""
    publish()
    five.set_alias("animals", "stable", 3)
    assert [change.served for change in history(five, "animals")] == [6]
    with pytest.raises(BundleError, match=r"`lenserve models rollback animals` .* would go to it"):
        remove(five, "animals", 6)
    assert 6 not in prune(five, "animals", 1, dry_run=True)
    assert roll_back(five, "animals", recent_s=0).version == 6
    assert roll_back(five, "animals", recent_s=0).version == 5
    assert [change.served for change in history(five, "animals")] == [6, None, None]


def test_the_version_that_was_served_after_an_alias_was_removed_is_the_way_back(pinned: Repository) -> None:
    """It was served last; the version that the alias named before it comes next."""
    remove_alias(pinned, "animals", "stable")
    pinned.set_alias("animals", "stable", 2)
    assert roll_back(pinned, "animals", recent_s=0).version == 5
    assert roll_back(pinned, "animals", recent_s=0).version == 1


def test_what_a_first_rollback_went_back_from_is_not_the_version_before(pinned: Repository) -> None:
    """Nor is it before or after a rollback of an alias."""
    remove_alias(pinned, "animals", "stable")
    assert roll_back(pinned, "animals", recent_s=0).version == 1
    assert remove(pinned, "animals", 5) == {}


def test_lines_that_do_not_say_what_was_served_keep_their_way_back(five: Repository) -> None:
    """Older versions of Lenserve wrote them: to the version before the first that the alias named."""
    five.set_alias("animals", "stable", 3)
    line = json.loads((five.root / LOG).read_text())
    del line["served"]
    (five.root / LOG).write_text(json.dumps(line) + "\n")
    assert roll_back(five, "animals").version == 2


def test_only_a_line_that_says_what_was_served_has_that_key(five: Repository) -> None:
    """Versions of Lenserve that are older than the key reject it."""
    for alias, version in (("canary", 1), ("stable", 1), ("stable", 2)):
        five.set_alias("animals", alias, version)
    lines = [json.loads(line) for line in (five.root / LOG).read_text().splitlines()]
    assert [line.get("served", "missing") for line in lines] == ["missing", 5, "missing"]


def test_a_damaged_version_was_not_served_before_there_was_an_alias(five: Repository) -> None:
    """The newest one that is intact was."""
    (five.folder("animals", 5) / "model.onnx").write_bytes(b"changed")
    five.set_alias("animals", "stable", 1)
    assert roll_back(five, "animals").version == 4


def test_a_damaged_version_is_not_rolled_back_to(five: Repository) -> None:
    """Its digests are verified first."""
    for version in (1, 2):
        five.set_alias("animals", "stable", version)
    (five.folder("animals", 1) / "model.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"has 7 bytes, .* publish a new version\."):
        roll_back(five, "animals")
    assert five.aliases("animals") == {"stable": 2}


def test_what_was_rolled_back_from_is_not_proposed(pinned: Repository) -> None:
    """If nothing else is left, the message says so."""
    prune(pinned, "animals", 1)
    pinned.set_alias("animals", "stable", 5)
    roll_back(pinned, "animals")
    with pytest.raises(BundleError, match=r"no other before that; the others were rolled back from: 5$"):
        roll_back(pinned, "animals", recent_s=0)


def test_the_way_past_a_damaged_version_is_named(five: Repository) -> None:
    """It is the version that the alias named before that."""
    for alias in ("stable", "canary"):
        for version in (1, 2, 3):
            five.set_alias("animals", alias, version)
    (five.folder("animals", 2) / "model.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"To go further back, use `lenserve models promote animals@1`$"):
        roll_back(five, "animals")
    with pytest.raises(BundleError, match=r"use `lenserve models alias animals@1 canary`$"):
        roll_back(five, "animals", "canary")


# Removing


def test_what_is_needed_is_not_removed(five: Repository) -> None:
    """Neither what an alias names nor what is served for want of `stable`."""
    with pytest.raises(BundleError, match="it is the newest"):
        remove(five, "animals", 5)
    five.set_alias("animals", "canary", 2)
    with pytest.raises(BundleError, match="the alias 'canary' names it"):
        remove(five, "animals", 2)
    five.set_alias("animals", "shadow", 2)
    with pytest.raises(BundleError, match=r"the aliases 'canary' and 'shadow' name it; point them at other"):
        remove(five, "animals", 2, confirmed=True)
    five.set_alias("animals", "stable", 1)
    assert remove(five, "animals", 4) == {}
    assert five.versions("animals") == [1, 2, 3, 5]


def test_what_a_rollback_would_go_to_is_removed_only_if_that_is_confirmed(pinned: Repository) -> None:
    """The result says where a rollback goes since then, or that it goes nowhere."""
    for alias in ("stable", "canary"):
        for version in (1, 2):
            pinned.set_alias("animals", alias, version)
    with pytest.raises(BundleError) as refused:
        remove(pinned, "animals", 1)
    assert str(refused.value) == (
        "version 1 of model 'animals' is not removed: `lenserve models rollback animals --alias canary` "
        "(alias 'canary') and `lenserve models rollback animals` (alias 'stable') would go to it; to remove "
        "it all the same, add --yes"
    )
    assert remove(pinned, "animals", 1, confirmed=True) == {"canary": None, "stable": None}
    assert pinned.versions("animals") == [2, 3, 4, 5]


def test_before_there_was_an_alias_the_version_before_the_served_one_needs_a_confirmation(
    five: Repository,
) -> None:
    """A rollback would make it `stable`. What is refused otherwise stays refused."""
    with pytest.raises(BundleError, match=r"`lenserve models rollback animals` \(alias 'stable'\) would"):
        remove(five, "animals", 4)
    with pytest.raises(BundleError, match="it is the newest"):
        remove(five, "animals", 5, confirmed=True)
    assert remove(five, "animals", 4, confirmed=True) == {"stable": 3}
    assert prune(five, "animals", 1) == [1, 2]
    with pytest.raises(BundleError, match="would go to it"):
        remove(five, "animals", 3)
    assert remove(five, "animals", 3, confirmed=True) == {"stable": None}
    with pytest.raises(BundleError, match="it is the only one"):
        remove(five, "animals", 5, confirmed=True)


def test_while_newer_ones_are_damaged_the_version_that_is_served_stays(five: Repository) -> None:
    """A server that starts again would find no version. The damaged ones may go."""
    for version in (4, 5):
        (five.folder("animals", version) / "model.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"version 3 .* is the newest that is intact, and servers"):
        remove(five, "animals", 3)
    assert prune(five, "animals", 1, dry_run=True) == [1, 4]
    remove(five, "animals", 5)
    remove(five, "animals", 4)
    assert prune(five, "animals", 1) == [1]
    assert five.versions("animals") == [2, 3]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file whose disk fails")
def test_while_a_disk_fails_no_older_version_counts_as_the_served_one(five: Repository) -> None:
    """Nothing is removed or rolled back; promoting another version works, and logs what was served."""
    manifest = five.folder("animals", 5) / "manifest.json"
    manifest.unlink()
    manifest.symlink_to("/proc/self/mem")  # reading it fails with EIO
    operations: list[Callable[[], object]] = [
        lambda: remove(five, "animals", 4, confirmed=True),
        lambda: roll_back(five, "animals"),
        lambda: prune(five, "animals", 1),
    ]
    for operation in operations:
        with pytest.raises(InvalidManifest, match=r"5/manifest\.json cannot be read: Input/output error"):
            operation()
    assert (five.versions("animals"), five.aliases("animals")) == ([1, 2, 3, 4, 5], {})
    change = five.set_alias("animals", "stable", 3)
    assert change is not None
    assert change.served == 5


@pytest.mark.parametrize("number_kept", [True, False])
def test_the_number_of_a_removed_version_is_not_used_again(
    pinned: Repository, publish: Publish, *, number_kept: bool
) -> None:
    """Also in a repository that does not record its highest number."""
    if not number_kept:
        (pinned.root / "animals" / ".last_version").unlink()
    remove(pinned, "animals", 5)
    assert publish().version == 6


def test_pruning_keeps_the_newest_aliases_and_what_a_rollback_needs(five: Repository) -> None:
    """A dry run says the same, and removes nothing."""
    for version in (1, 2, 3):
        five.set_alias("animals", "stable", version)
    assert prune(five, "animals", 1, dry_run=True) == [1, 4]
    assert five.versions("animals") == [1, 2, 3, 4, 5]
    assert prune(five, "animals", 1) == [1, 4]
    assert five.versions("animals") == [2, 3, 5]
    assert roll_back(five, "animals").version == 2


@pytest.mark.parametrize(
    "operation",
    [
        lambda repository: history(repository, "plants"),
        lambda repository: roll_back(repository, "plants"),
        lambda repository: remove(repository, "plants", 1),
        lambda repository: prune(repository, "plants", 1),
        lambda repository: remove_alias(repository, "plants", "stable"),
        lambda repository: remove_alias(repository, "animals", "stable"),
        lambda repository: remove(repository, "animals", 9),
    ],
    ids=["history", "rollback", "remove", "prune", "alias of none", "no alias", "no version"],
)
def test_what_does_not_exist_is_named(operation: Callable[[Repository], object], five: Repository) -> None:
    """And nothing is created."""
    with pytest.raises(UnknownModel, match=r"plants|no alias 'stable'|no version 9"):
        operation(five)
    assert sorted(entry.name for entry in five.root.iterdir()) == ["animals"]
