"""Makes the alias `stable` follow the verdicts of runs, without overwriting what operators do meanwhile."""

from collections.abc import Callable
from contextlib import suppress

from serving.bundle import STABLE_ALIAS, Repository
from serving.bundle.operations import history
from serving.errors import AliasMoved, BundleError
from training.champion.judge import Verdict
from training.champion.result import Challenge


def keep_champion(repository: Repository, model: str, challenge: Challenge | None) -> None:
    """Let `stable` name the champion, where there is no such alias: a newer candidate is then not served.

    Args:
        repository: where both are.
        model: name of both.
        challenge: the comparison with the champion; None: there was none.
    """
    if challenge is None or challenge.champion is None or challenge.decision == "refuse":
        return
    if STABLE_ALIAS not in repository.aliases(model):
        reason = "the version that was served before a run published a newer one"
        with suppress(AliasMoved):  # by another run or an operator, a moment ago
            repository.set_alias(model, STABLE_ALIAS, challenge.champion, expect=0, reason=reason)


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
    reason = "promoted by its run" + (", by --force" if challenge.forced else "")
    try:
        changes = history(repository, model)
        if any(change.alias == STABLE_ALIAS and change.version == version for change in changes):
            return "promote"  # by an earlier process of this run; what came after that is an operator's will
        repository.set_alias(model, STABLE_ALIAS, version, expect=challenge.champion or 0, reason=reason)
    except BundleError as error:  # or the aliases or their log were damaged meanwhile
        reason = _moved(repository, model, challenge) if isinstance(error, AliasMoved) else str(error)
        warn(f"version {version} stays a candidate: {reason}")
        return "candidate"
    return "promote"


def _moved(repository: Repository, model: str, challenge: Challenge) -> str:
    """Say which champion a version was compared with, and which one there is now."""
    before, now = challenge.champion, repository.aliases(model).get(STABLE_ALIAS)
    was = f"named version {before}" if before else "did not exist"
    is_now = f"names version {now}" if now else "does not exist"
    return (
        f"when it was compared, {STABLE_ALIAS!r} {was}, and now it {is_now}; run the recipe again to compare "
        "it with that"
    )
