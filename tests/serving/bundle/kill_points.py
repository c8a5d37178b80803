"""Kill a real publisher at every line that it executes, and check what it leaves behind.

    python kill_points.py EMPTY_FOLDER DESCRIPTION_JSON first|next|alias|rollback|remove

For N = 1, 2, 3, ... a forked child does the operation on a copy of a repository and kills itself with SIGKILL
at the N-th line of the modules of the operation (or of the publisher's `write`), until a child survives.
After each death the parent checks the repository. Prints one JSON object: the number of points, and how many
deaths left the old and the new state.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import serving.bundle.aliases
import serving.bundle.operations
import serving.bundle.repository
import serving.bundle.staging
from serving.bundle import Description, Repository
from serving.bundle.operations import history, remove, roll_back

MODEL = "animals"
OPERATIONS, STAGING = serving.bundle.operations.__file__, serving.bundle.staging.__file__
REPOSITORY = serving.bundle.repository.__file__
TRACED_FILES = {
    "first": (REPOSITORY, STAGING, __file__),
    "next": (REPOSITORY, STAGING, __file__),
    "alias": (serving.bundle.aliases.__file__, STAGING),
    "rollback": (OPERATIONS,),
    "remove": (OPERATIONS, STAGING),
}

Operation = Callable[[Repository], object]
Moves = list[tuple[str, str, int | None, int | None]]  # of aliases: action, alias, version before, version
State = tuple[list[int], dict[str, int], Moves]


def main() -> None:
    """Kill, check, count."""
    work, description_file, operation_name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    description = Description.model_validate_json(description_file.read_bytes())

    def write(folder: Path) -> Description:
        (folder / "model.onnx").write_bytes(b"a network")
        (folder / "report").mkdir()
        (folder / "report" / "metrics.json").write_bytes(b"{}")
        (folder / "golden.npz").write_bytes(b"examples")
        return description

    def publish(repository: Repository) -> None:
        repository.publish(MODEL, write)

    operations: dict[str, Operation] = {
        "first": publish,
        "next": publish,
        "alias": lambda repository: repository.set_alias(MODEL, "stable", 2),
        "rollback": lambda repository: roll_back(repository, MODEL),
        "remove": lambda repository: remove(repository, MODEL, 1, confirmed=True),
    }
    before = Repository(work / "before")
    if operation_name != "first":
        publish(before)
        before.set_alias(MODEL, "stable", 1)
    if operation_name in ("alias", "rollback", "remove"):
        publish(before)
    if operation_name in ("rollback", "remove"):
        before.set_alias(MODEL, "stable", 2)
    before.root.mkdir(exist_ok=True)

    operation = operations[operation_name]
    after = _copy(before, work / "after")
    operation(after)
    old, new = _state(before), _state(after)
    _check(old != new, "the operation changes something")

    deaths = {"old": 0, "new": 0}
    for point in count(1):
        repository = _copy(before, work / str(point))
        survived = not _dies(operation, repository, TRACED_FILES[operation_name], at_line=point)
        state = _state(Repository(repository.root))
        _check(state in (old, new), f"line event {point}: {state} is neither {old} nor {new}")
        _check_next_operations(Repository(repository.root), state, publish, point)
        shutil.rmtree(repository.root)
        if survived:
            _check(state == new, f"the survivor left {state}")
            break
        deaths["new" if state == new else "old"] += 1
    sys.stdout.write(json.dumps({"points": sum(deaths.values()), **deaths}) + "\n")


def _copy(repository: Repository, root: Path) -> Repository:
    shutil.copytree(repository.root, root)
    return Repository(root)


def _dies(operation: Operation, repository: Repository, traced: Sequence[str], *, at_line: int) -> bool:
    """Do the operation in a child that kills itself at a line; return whether it did."""
    child = os.fork()
    if not child:
        try:
            sys.settrace(_killer(traced, at_line))
            operation(repository)
            sys.settrace(None)
        except BaseException as error:  # noqa: BLE001 - the parent reads the exit status
            sys.settrace(None)
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        _check(os.WTERMSIG(status) == signal.SIGKILL, f"line event {at_line}: signal {os.WTERMSIG(status)}")
        return True
    _check(os.WEXITSTATUS(status) == 0, f"line event {at_line}: the child failed")
    return False


def _killer(traced: Sequence[str], at_line: int) -> Callable[[FrameType, str, Any], Any]:
    lines = count(1)

    def trace(frame: FrameType, event: str, argument: object) -> object:
        del argument
        if frame.f_code.co_filename not in traced:
            return None
        if event == "line" and next(lines) == at_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def _state(repository: Repository) -> State:
    """Verify and return everything that a reader sees."""
    versions = repository.versions(MODEL)
    _check(repository.models() == ([MODEL] if versions else []), f"models: {repository.models()}")
    for version in versions:
        bundle = repository.read(MODEL, version)  # raises unless every digest holds
        _check(set(bundle.manifest.files) == {"model.onnx", "golden.npz", "report/metrics.json"}, "files")
    aliases = dict(repository.aliases(MODEL))
    changes = history(repository, MODEL) if versions else ()
    moves: Moves = [(change.action, change.alias, change.before, change.version) for change in changes]
    _check({alias: version for _, alias, _, version in moves} == aliases, f"{moves} lead to {aliases}")
    return versions, aliases, moves


def _check_next_operations(repository: Repository, state: State, publish: Operation, point: int) -> None:
    """Check that a later publisher works, and removes leftovers. The killed one may have lost its number."""
    versions, aliases, moves = state
    publish(repository)
    last = repository.versions(MODEL)[-1]
    _check(last - max(versions, default=0) in (1, 2), f"line event {point}: the next number is {last}")
    repository.set_alias(MODEL, "canary", last)
    expected = [*versions, last], {**aliases, "canary": last}, [*moves, ("set", "canary", None, last)]
    _check(_state(repository) == expected, f"line event {point}: then {_state(repository)}, not {expected}")
    names = {entry.name for entry in (repository.root / MODEL).iterdir()}
    _check(
        names == {*map(str, expected[0]), "aliases.json", "aliases.history.jsonl", ".last_version"},
        f"line event {point}: left {sorted(names)}",
    )


def _check(holds: bool, message: str) -> None:  # noqa: FBT001 - reads like assert, and -O keeps it
    if not holds:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
