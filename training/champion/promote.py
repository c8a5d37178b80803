"""Makes the alias `stable` follow the verdicts of runs, without overwriting what operators do meanwhile.

Each step looks at what is served and changes the alias under one lock on the model's folder.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from serving.bundle import STABLE_ALIAS, AliasChange, Repository
from serving.bundle.aliases import read_aliases, read_history
from serving.bundle.operations import KEPT, served_without_stable
from serving.errors import AliasMoved, BundleError
from training.champion.judge import Verdict
from training.champion.result import Challenge

_ATTEMPTS = 10  # in an object store, where a change of any alias of the model is a conflict

_Result = TypeVar("_Result")


def keep_champion(repository: Repository, model: str, challenge: Challenge | None) -> None:
    """Let `stable` name what is served, where there is no such alias: a newer candidate is then not served.

    That is the champion, or a version that an operator has published since the comparison.

    Args:
        repository: where both are.
        model: name of both.
        challenge: the comparison with the champion; None: there was none.

    Raises:
        BundleError: the champion does not run here, so it may not be what is served; or the aliases are
            invalid.
        OSError, StoreError: what is served cannot be found out now.
    """
    if challenge is not None and challenge.decision != "refuse" and repository.versions(model):
        _try(lambda: _keep(repository, model, challenge))


def promote(
    repository: Repository,
    model: str,
    version: int,
    challenge: Challenge | None,
    warn: Callable[[str], None],
) -> Verdict | None:
    """Point `stable` at a published version if that is the decision, once, unless an operator moved it.

    Returns: what became of it; None if nothing was decided.
    """
    if challenge is None:
        return None
    if challenge.decision != "promote":
        return challenge.decision
    try:
        why_not = _try(lambda: _promote(repository, model, version, challenge))
    except BundleError as error:  # the aliases or their log were damaged meanwhile
        why_not = str(error)
    if why_not:
        warn(f"version {version} stays a candidate: {why_not}")
        return "candidate"
    return "promote"


def _try(change: Callable[[], _Result]) -> _Result:
    for _ in range(_ATTEMPTS - 1):
        with suppress(AliasMoved):  # between its look and its write: look again
            return change()
    return change()


def _keep(repository: Repository, model: str, challenge: Challenge) -> None:
    with repository.changing(model) as folder:
        versions = repository.versions(model)
        if not versions or STABLE_ALIAS in read_aliases(folder):
            return
        kept, reason = versions[-1], KEPT
        if challenge.decision != "promote" or kept != challenge.champion:
            # Otherwise whatever its state: the new version replaces it at once.
            kept, reason = served_without_stable(repository, model, versions)
            if kept == challenge.champion and not challenge.champion_runs:
                raise BundleError(_why_unpublished(model, kept))
        repository.write_alias(folder, model, "set", STABLE_ALIAS, kept, reason)


def _why_unpublished(model: str, champion: int) -> str:
    # A server that cannot load the champion either serves an older version now: it would serve the candidate
    # when it starts again. With `stable` on that older version, one that can load the champion would go back.
    return (
        f"nothing is published: version {champion} of model {model!r}, the champion, does not run on this "
        f"machine, and without the alias {STABLE_ALIAS!r} a server that cannot load it would serve the new "
        f"version. Choose the version to serve with `lenserve models promote {model}@VERSION`, then repeat "
        "the run with --resume"
    )


def _promote(repository: Repository, model: str, version: int, challenge: Challenge) -> str:
    """Promote a version, unless it was promoted before; return why it must not be."""
    with repository.changing(model) as folder:
        changes = [change for change in read_history(folder) if change.alias == STABLE_ALIAS]
        if any(change.version == version for change in changes):
            return ""  # by an earlier process of this run; what came after that is an operator's will
        repository.require_version(model, version)
        earlier = [each for each in repository.versions(model) if each < version]
        if why_not := _why_moved(challenge, read_aliases(folder).get(STABLE_ALIAS), changes, earlier):
            return why_not
        reason = "promoted by its run" + (", by --force" if challenge.forced else "")
        repository.write_alias(folder, model, "set", STABLE_ALIAS, version, reason)
    return ""


def _why_moved(
    challenge: Challenge, named: int | None, changes: Sequence[AliasChange], earlier: Sequence[int]
) -> str:
    """Say which version a new one was compared with, and what is served now; "" if that is the same.

    Args:
        challenge: the comparison.
        named: version that `stable` names now.
        changes: of `stable`.
        earlier: versions before the new one.
    """
    champion = challenge.champion
    was, now = f"named version {champion}", f"names version {named}" if named else "does not exist"
    if champion is None:
        is_same, was = named is None and not earlier, "did not exist"
        now += "" if named or not earlier else f", but version {earlier[-1]} does"
    elif challenge.stable == 0:  # `keep_champion` has set it since
        is_same = named == champion and changes[-1].reason == KEPT
        was = f"did not exist and version {champion} was served"
    else:
        is_same = named == champion
    if is_same:
        return ""
    return (
        f"when it was compared, {STABLE_ALIAS!r} {was}, and now it {now}; run the recipe again to compare it "
        "with that"
    )
