"""`lenserve models ...` in this process: what is printed, and what becomes of the repository."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import Repository
from serving.bundle.manifest import FileDigest, Gate
from serving.cli import main
from tests.colours import Publish, write_colours

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def three(repository: Repository, publish: Publish) -> Repository:
    """A model with three versions."""
    for turn in range(3):
        publish(rotate=turn)
    return repository


def _call(repository: Repository, *arguments: str) -> int:
    return main(["models", *arguments, "--repository", str(repository.root)])


def _json(repository: Repository, capsys: Capture, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert _call(repository, *arguments, "--json") == 0
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def test_promote_rollback_and_history(three: Repository, capsys: Capture) -> None:
    """One command each; the history has both, with the reason."""
    assert _call(three, "promote", "colours@1") == 0
    assert _call(three, "promote", "colours@3", "--expect", "1", "--reason", "better") == 0
    assert _call(three, "promote", "colours@stable") == 0
    assert _call(three, "rollback", "colours", "--reason", "too slow") == 0
    assert capsys.readouterr().out.splitlines() == [
        "colours: stable names version 1; before, it did not exist, and version 3 was the newest",
        "colours: stable names version 3; before, it named version 1",
        "colours: stable already names version 3",
        "colours: stable names version 1; before, it named version 3",
    ]
    changes = _json(three, capsys, "history", "colours")["changes"]
    assert [(change["action"], change["version"], change["reason"]) for change in changes] == [
        ("set", 1, ""),
        ("set", 3, "better"),
        ("rollback", 1, "too slow"),
    ]
    assert _call(three, "history", "colours") == 0
    assert capsys.readouterr().out.splitlines()[3].endswith("rollback  stable  3       1        too slow")


def test_a_change_that_came_first_is_reported(three: Repository, capsys: Capture) -> None:
    """Exit code 1, one line."""
    three.set_alias("colours", "stable", 2)
    assert _call(three, "promote", "colours@3", "--expect", "1") == 1
    assert capsys.readouterr().err == (
        "lenserve models promote: alias 'stable' of model 'colours' names version 2, expected version 1: "
        f"another operator changed it. `lenserve models history colours --repository {three.root}` shows "
        "who and why; if your change is still right, repeat it with --expect 2\n"
    )


def test_a_damaged_version_is_not_promoted(three: Repository, capsys: Capture) -> None:
    """Its digests are verified first."""
    path = three.folder("colours", 2) / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"changed")
    assert _call(three, "promote", "colours@2") == 1
    assert "model.onnx" in capsys.readouterr().err
    assert three.aliases("colours") == {}


def test_aliases_are_set_and_removed(three: Repository, capsys: Capture) -> None:
    """Any name but a number."""
    assert _call(three, "alias", "colours@2", "canary") == 0
    assert _call(three, "alias", "colours", "canary", "--remove") == 0
    assert capsys.readouterr().out.splitlines() == [
        "colours: canary names version 2; before, it did not exist",
        "colours: canary is removed; it named version 2",
    ]
    assert three.aliases("colours") == {}


def _files(repository: Repository, version: int) -> list[FileDigest]:
    return list(repository.read("colours", version).manifest.files.values())


def test_two_versions_are_compared_side_by_side(three: Repository, capsys: Capture) -> None:
    """A line for each fact, a column for each version, in the order in which they were named."""
    three.set_alias("colours", "stable", 2)
    assert _call(three, "show", "colours@stable", "colours@3") == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["version", "2", "3"]
    assert ["accuracy", "100.00%", "100.00%"] in lines
    digests = [three.read("colours", version).digest for version in (2, 3)]
    assert [row[0] for row in lines if row[1:] == digests] == ["digest"]
    both = _json(three, capsys, "show", "colours@stable", "colours@3")["versions"]
    assert [row["version"] for row in both] == [2, 3]


def test_a_whole_model_is_removed_only_if_that_is_confirmed(three: Repository, capsys: Capture) -> None:
    """Also its aliases and what a killed command left; a model of that name begins again at 1."""
    three.set_alias("colours", "stable", 2)
    assert _call(three, "remove", "colours") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "colours names no version: to remove one of 1, 2, 3, use colours@VERSION; to remove all of them, the "
        "aliases and their history, add --yes"
    )
    assert three.versions("colours") == [1, 2, 3]
    (three.root / ".staging-removed-colours" / "1").mkdir(parents=True)
    assert _call(three, "remove", "colours", "--yes") == 0
    assert capsys.readouterr().out == "colours: removed, with its versions 1, 2, 3\n"
    assert [path.name for path in three.root.iterdir()] == [".emptied"]


def test_show_lists_versions_or_describes_one(three: Repository, capsys: Capture) -> None:
    """Newest first; MODEL@ALIAS is one version with every fact."""
    three.set_alias("colours", "stable", 2)
    assert _call(three, "show", "colours") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["version", "3", "2", "1"]
    assert rows[2][1] == "stable"
    assert _call(three, "show", "colours@stable") == 0
    facts = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert facts[:2] == [["version", "2"], ["aliases", "stable"]]
    assert ["accuracy", "100.00%"] in facts
    assert ["size bytes", f"{sum(file.size_bytes for file in _files(three, 2)):,}"] in facts
    shown = _json(three, capsys, "show", "colours")
    assert [row["version"] for row in shown["versions"]] == [3, 2, 1]
    assert shown["versions"][0]["accuracy"] == 1.0
    assert shown["versions"][0]["data_digest"] == three.read("colours", 3).manifest.provenance.data_digest


def test_show_marks_a_version_that_cannot_be_trusted(three: Repository, capsys: Capture) -> None:
    """The others are shown; the exit code is 1."""
    path = three.folder("colours", 2) / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"changed")
    assert _call(three, "show", "colours") == 1
    assert capsys.readouterr().out.count("cannot be trusted") == 1


def test_removing_stable_says_which_version_is_served_now(three: Repository, capsys: Capture) -> None:
    """The newest, which may be a candidate. No command knows whether a server can load it."""
    three.set_alias("colours", "stable", 1)
    assert _call(three, "alias", "colours", "stable", "--remove") == 0
    assert capsys.readouterr().out == (
        "colours: stable is removed; it named version 1; version 3 is the newest; a server that cannot load "
        "it serves an older one\n"
    )
    three.set_alias("colours", "stable", 3)
    assert _call(three, "alias", "colours", "stable", "--remove") == 0
    assert capsys.readouterr().out == "colours: stable is removed; it named version 3, the newest\n"


def _damage(repository: Repository, version: int) -> None:
    path = repository.folder("colours", version) / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"changed")


def test_removing_stable_names_the_version_that_servers_load(three: Repository, capsys: Capture) -> None:
    """They skip damaged ones; where all are damaged, a server that starts has none."""
    _damage(three, 3)
    three.set_alias("colours", "stable", 1)
    assert _call(three, "alias", "colours", "stable", "--remove") == 0
    assert capsys.readouterr().out.endswith(
        "; version 2 is the newest that is intact; a server that cannot load it serves an older one\n"
    )
    three.set_alias("colours", "stable", 1)
    _damage(three, 1)
    _damage(three, 2)
    assert _call(three, "alias", "colours", "stable", "--remove") == 0
    assert capsys.readouterr().out.endswith(
        "; every version is damaged: a server that starts now has none to serve\n"
    )


@pytest.mark.parametrize("verdict", ["candidate", "promote"])
def test_removing_stable_warns_if_a_candidate_is_served_then(
    verdict: str, three: Repository, capsys: Capture
) -> None:
    """Its run did not promote it. No warning if it was served already."""
    gate = Gate.model_validate({"verdict": verdict, "champion": 3})
    three.publish(
        "colours",
        lambda folder: write_colours(folder, rotate=0, lie=False).model_copy(update={"gate": gate}),
    )
    for version in (2, 4):
        three.set_alias("colours", "stable", version)
        assert _call(three, "alias", "colours", "stable", "--remove") == 0
        assert capsys.readouterr().err == (
            f"! version 4 was never promoted: see `lenserve models show colours@4 --repository {three.root}`"
            f"; to serve version 2 again, use `lenserve models promote colours@2 --repository {three.root}`\n"
            if (verdict, version) == ("candidate", 2)
            else ""
        )


def test_removing_stable_warns_of_a_version_that_lost_a_race(three: Repository, capsys: Capture) -> None:
    """Its manifest says `promote`, but another run was faster; an import is no better."""
    three.set_alias("colours", "stable", 3)
    gate = Gate.model_validate({"verdict": "promote", "champion": 2})
    three.publish(
        "colours",
        lambda folder: write_colours(folder, rotate=0, lie=False).model_copy(update={"gate": gate}),
    )
    assert _call(three, "alias", "colours", "stable", "--remove") == 0
    assert capsys.readouterr().err.startswith("! version 4 was never promoted: see ")


def test_an_alias_that_names_no_version_is_said(three: Repository, capsys: Capture) -> None:
    """Servers go on with what they have loaded, so nothing is pruned."""
    (three.folder("colours", 1).parent / "aliases.json").write_text('{"stable": {"version": 77}}')
    assert _call(three, "show", "colours") == 1
    assert "! the alias 'stable' names version 77, which does not exist" in capsys.readouterr().err
    assert _call(three, "prune", "colours", "--keep", "1") == 1
    assert "its alias 'stable' names version 77, which does not exist" in capsys.readouterr().err
    assert three.versions("colours") == [1, 2, 3]


def test_the_directory_of_one_model_is_no_repository(three: Repository, capsys: Capture) -> None:
    """The message names the directory above."""
    assert _call(Repository(three.root / "colours"), "show") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"looks like the directory of one model: use --repository {three.root}" in said


def test_a_first_rollback_says_what_was_served_before(three: Repository, capsys: Capture) -> None:
    """Without `stable` that is the newest version that is intact. Other aliases had served none."""
    assert _call(three, "rollback", "colours") == 0
    assert _call(three, "alias", "colours@3", "canary") == 0
    assert _call(three, "alias", "colours", "stable", "--remove") == 0
    _damage(three, 3)
    capsys.readouterr()
    assert _call(three, "promote", "colours@1") == 0
    assert capsys.readouterr().out == (
        "colours: stable names version 1; before, it did not exist, and version 2 was the newest that is "
        "intact\n"
    )


def test_the_version_that_a_rollback_would_go_to_is_removed_only_with_yes(
    three: Repository, capsys: Capture
) -> None:
    """The result says where a rollback goes now. With none left, rollback says what was removed."""
    for version in (1, 2, 3):
        three.set_alias("colours", "stable", version)
    assert _call(three, "remove", "colours@2") == 1
    assert capsys.readouterr().err == (
        "lenserve models remove: version 2 of model 'colours' is not removed: `lenserve models rollback "
        f"colours --repository {three.root}` (alias 'stable') would go to it; to remove it all the same, add "
        "--yes\n"
    )
    assert _call(three, "remove", "colours@2", "--yes") == 0
    assert capsys.readouterr().out == (
        "colours: removed version 2; a rollback of stable now goes to version 1\n"
    )
    assert _json(three, capsys, "remove", "colours@1", "--yes")["rollback"] == {"stable": None}
    assert _call(three, "rollback", "colours") == 1
    assert capsys.readouterr().err == (
        "lenserve models rollback: alias 'stable' of model 'colours' cannot be rolled back: it names version "
        "3; before, it named versions 1 and 2, which were removed; version 3 is the only one\n"
    )


def test_a_rollback_that_goes_nowhere_names_the_other_versions(
    repository: Repository, publish: Publish, capsys: Capture
) -> None:
    """Not the one that is served."""
    for _ in range(2):
        repository.set_alias("colours", "stable", publish().version)
    publish()
    assert _call(repository, "remove", "colours@1", "--yes") == 0
    assert capsys.readouterr().out == (
        "colours: removed version 1; a rollback of stable is no longer possible\n"
    )
    assert _call(repository, "rollback", "colours") == 1
    assert capsys.readouterr().err.endswith(
        "it names version 2; before, it named version 1, which was removed; use `lenserve models promote "
        f"colours@3 --repository {repository.root}`\n"
    )


def test_commands_in_messages_name_the_repository_unless_it_is_the_default(
    three: Repository, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted without it, they would change the models in `./repository`."""
    assert _call(three, "promote", "colours@3", "--expect", "1") == 1
    assert f"`lenserve models history colours --repository {three.root}`" in capsys.readouterr().err
    monkeypatch.chdir(three.root.parent)
    assert three.root.name == "repository"
    assert main(["models", "promote", "colours@3", "--expect", "1"]) == 1
    assert "`lenserve models history colours`" in capsys.readouterr().err


def test_a_reason_that_is_not_recorded_is_said(three: Repository, capsys: Capture) -> None:
    """The history has changes, and nothing changes."""
    three.set_alias("colours", "stable", 3)
    assert _call(three, "promote", "colours@3", "--reason", "passed the review") == 0
    assert capsys.readouterr().out == (
        "colours: stable already names version 3; nothing changes, so the reason is not recorded\n"
    )


def test_the_folder_of_a_model_is_not_taken_for_a_repository(three: Repository, capsys: Capture) -> None:
    """No advice to move its versions."""
    assert main(["models", "list", "--repository", str(three.root / "colours")]) == 0
    assert (
        f"1: is a version: the repository of the model {three.root / 'colours'} is the folder above that"
        in (" ".join(capsys.readouterr().err.split()))
    )


def test_show_without_a_model_lists_all(three: Repository, publish: Publish, capsys: Capture) -> None:
    """A line each: the version that is served by default, how many there are, the newest with its verdict."""
    publish("plants")
    three.set_alias("colours", "stable", 2)
    assert _call(three, "show") == 0
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    created = [
        three.read(model, version).manifest.provenance.created_at.isoformat(timespec="seconds")
        for model, version in (("colours", 3), ("plants", 1))
    ]
    assert rows == [
        ["model", "served", "versions", "newest", "created", "verdict"],
        ["colours", "2 (stable)", "3", "3", created[0]],
        ["plants", "1 (newest)", "1", "1", created[1]],
    ]
    first, second = _json(three, capsys, "show")["models"]
    assert (first["served"], first["stable"], first["versions"], first["newest"]) == (2, 2, 3, 3)
    assert (second["served"], second["stable"], second["verdict"]) == (1, None, None)


def test_show_without_a_model_goes_on_after_one_that_is_damaged(
    three: Repository, publish: Publish, capsys: Capture
) -> None:
    """Its line says why, and the exit code is 1."""
    publish("plants")
    publish("trees")
    (three.root / "plants" / "aliases.json").write_text("{", encoding="utf-8")
    (three.root / "trees" / "aliases.json").write_text('{"stable": {"version": 7}}', encoding="utf-8")
    _damage(three, 3)
    assert _call(three, "show") == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert re.split(r"  +", lines[0])[:4] == ["colours", "2 (newest intact)", "3", "3"]
    assert "model.onnx has 7 bytes" in lines[0]
    assert "aliases.json: " in lines[1]
    assert lines[2].endswith("its alias 'stable' names version 7, which does not exist: promote another")


def test_show_without_a_model_says_that_the_served_version_is_damaged(
    three: Repository, capsys: Capture
) -> None:
    """Also where it is not the newest."""
    three.set_alias("colours", "stable", 2)
    _damage(three, 2)
    assert _call(three, "show") == 1
    assert re.search(r"colours +2 \(stable\) .*/2/model\.onnx has 7 bytes", capsys.readouterr().out)


def test_show_of_an_empty_repository_says_so(tmp_path: Path, capsys: Capture) -> None:
    """It is not an error."""
    assert _call(Repository(tmp_path), "show") == 0
    assert "has no models yet: it holds no <model>/<version> directories" in capsys.readouterr().err
    assert _json(Repository(tmp_path), capsys, "show") == {"models": []}


def test_promoting_a_version_with_other_labels_warns(three: Repository, capsys: Capture) -> None:
    """It is promoted, since people may want that; equal labels give no warning.

    Without `stable`, the version before is the newest, which was served.
    """
    source = three.read("colours", 3)
    manifest = source.manifest.model_copy(update={"labels": ("cat", *source.manifest.labels[1:])})
    path = source.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(manifest.model_dump_json(), encoding="utf-8")
    assert _call(three, "promote", "colours@1") == 0
    assert "! version 1 has other labels (red, green, blue) than version 3" in capsys.readouterr().err
    assert _call(three, "promote", "colours@2") == 0
    assert capsys.readouterr().err == ""
    assert _call(three, "promote", "colours@3") == 0
    warning = capsys.readouterr().err
    assert "! version 3 has other labels (cat, " in warning
    assert f"go back with `lenserve models rollback colours --repository {three.root}`" in " ".join(
        warning.split()
    )


@pytest.mark.parametrize("command", ["promote", "remove"])
def test_a_repository_that_cannot_be_written_is_one_line(
    command: str, three: Repository, capsys: Capture
) -> None:
    """Such as one on a full disk; here a directory is where a file is to be written."""
    written = {"promote": "aliases.history.jsonl", "remove": ".last_version"}[command]
    path = three.folder("colours", 1).parent / written
    path.unlink(missing_ok=True)
    path.mkdir()
    assert _call(three, command, "colours@1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"lenserve models {command}: the repository {three.root} cannot be read or written: "
    )
    assert line.endswith("make room or correct its permissions, then repeat the command")
    assert three.versions("colours") == [1, 2, 3]


def test_an_invalid_aliases_file_says_how_to_go_on(three: Repository, capsys: Capture) -> None:
    """Nothing is changed until it is repaired or deleted."""
    path = three.folder("colours", 1).parent / "aliases.json"
    three.set_alias("colours", "stable", 2)
    path.write_text("{", encoding="utf-8")
    assert _call(three, "promote", "colours@1") == 1
    message = capsys.readouterr().err
    assert f"{path}: " in message
    assert 'repair it, for example as {"stable": {"version": 1}}: aliases.history.jsonl beside it' in message
    path.write_text('{"stable": {"version": 2}}', encoding="utf-8")
    assert _call(three, "promote", "colours@1") == 0


def test_while_aliases_are_invalid_their_history_and_versions_are_shown(
    three: Repository, capsys: Capture
) -> None:
    """The history says what to repair them to."""
    three.set_alias("colours", "stable", 2)
    (three.folder("colours", 1).parent / "aliases.json").write_text("{", encoding="utf-8")
    assert _call(three, "history", "colours") == 1
    printed = capsys.readouterr()
    assert re.search(r" set +stable +2$", printed.out, re.MULTILINE)
    assert "aliases.json: " in printed.err
    assert _call(three, "show") == 1
    (_, line) = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", line)[:4] == ["colours", "unknown", "3", "3"]


def test_the_only_version_is_not_removed_and_the_message_says_how(
    repository: Repository, publish: Publish, capsys: Capture
) -> None:
    """There is no other version to promote first."""
    publish()
    assert _call(repository, "remove", "colours@1") == 1
    assert "it is the only one; to serve the model no more, remove it whole" in capsys.readouterr().err


def test_prune_and_remove_say_what_they_removed(three: Repository, capsys: Capture) -> None:
    """A dry run removes nothing."""
    three.set_alias("colours", "stable", 3)
    assert _call(three, "prune", "colours", "--keep", "2", "--dry-run") == 0
    assert _call(three, "prune", "colours", "--keep", "2") == 0
    assert _call(three, "prune", "colours", "--keep", "2") == 0
    assert _call(three, "remove", "colours@2", "--yes") == 0
    assert capsys.readouterr().out.splitlines() == [
        "colours: would remove version 1",
        "colours: removed version 1",
        "colours: removed nothing",
        "colours: removed version 2; a rollback of stable is no longer possible",
    ]
    assert three.versions("colours") == [3]
    assert _call(three, "remove", "colours") == 2
    assert "names no version: to remove version 3, the aliases and" in capsys.readouterr().err
    assert _call(three, "remove", "colours", "--yes") == 0
    assert capsys.readouterr().out == "colours: removed, with its version 3\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "colours"), "colours names no version: use MODEL@VERSION, for example colours@3"),
        (("promote", "colours", "2"), "unexpected argument 2: use colours@2"),
        (("promote", "--expect", "1", "colours", "2"), "unexpected argument 2: use colours@2"),
        (("promote", "colours@2", "3"), "unexpected argument 3\n"),
        (("remove", "colours", "2"), "unexpected argument 2: use colours@2"),
        (("promote", "colours@"), "names no version after the @: add it, such as colours@1, or use colours"),
        (("show", "colours@"), "names no version after the @: add it, such as colours@1, or use colours"),
        (("promote", "colours/2"), "colours/2 is not the name of a version: use colours@2"),
        (("promote", "colours:2"), "colours:2 is not the name of a version: use colours@2"),
        (("alias", "canary", "colours@2"), "colours@2 is not the name of an alias: use colours@2 canary"),
        (
            ("rollback", "colours", "2"),
            "unexpected argument 2: to serve that version, use `lenserve models promote colours@2`",
        ),
        (("show", "colours", "2"), "colours 2 names no version: use colours@2"),
        (("alias", "colours", "2", "canary"), "unexpected argument canary: use colours@2"),
        (("alias", "colours", "2"), "colours names no version: use colours@2 and the name of the alias"),
        (
            ("alias",),
            "MODEL and ALIAS are required, for example: lenserve models alias lenet5-digits@2",
        ),
        (("promote",), "MODEL is required, for example: lenserve models promote lenet5-digits@2"),
        (("promote", "plants"), "no model 'plants'; it has colours"),
        (("show", "--metrics-url", "http://127.0.0.1:9/metrics"), "of one model answered: name the model"),
        (("promote", "colours@canary"), "has no alias 'canary'; known aliases: none"),
        (("promote", "colours@7"), "no version 7 of model 'colours'; its newest versions: 1, 2, 3"),
        (
            ("history", "colours@1"),
            "'colours@1' names a version: this command takes the model alone, colours",
        ),
        (
            ("rollback", "colours", "--alias", "canary"),
            "it does not exist; choose one of 1, 2, 3 with `lenserve models alias colours@VERSION canary -",
        ),
        (("alias", "colours", "canary", "--remove"), "has no alias 'canary'; known aliases: none"),
        (("promote", "colours@" + "9" * 5000), "... of model 'colours': versions have at most 18 digits"),
        (("show", "colours@²"), "has no alias '²'"),
        (("promote", "plants@1"), "no model 'plants'; it has colours"),
        (("show", "../colours"), "is not a valid model name"),
        (("remove", "colours@3"), "it is the newest"),
        (("remove", "plants", "--yes"), "no model 'plants'; it has colours"),
        (("show", "colours@1", "plants@1"), "no model 'plants'"),
        (("show", "colours@1", "colours"), "colours names no version: use MODEL@VERSION"),
        (("prune", "colours", "--keep", "0"), "--keep"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, three: Repository, capsys: Capture
) -> None:
    """The exit code is 1, or 2 for wrong usage."""
    assert _call(three, *arguments) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines(keepends=True)
    assert message in line


def test_a_repository_that_is_missing_is_named(tmp_path: Path) -> None:
    """Nothing is created."""
    assert main(["models", "history", "colours", "--repository", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
