"""Which version of a model is served after an import, and the next command."""

import shlex
from dataclasses import dataclass

from serving.bundle import STABLE_ALIAS, Bundle, Repository
from serving.errors import UsageError


@dataclass(frozen=True, slots=True)
class Before:
    """What a repository had of a model before an import."""

    stable: int | None  # version that the alias `stable` names
    newest: int | None

    def served(self, imported: int) -> int:
        """Return the version that is served after the import."""
        return imported if self.stable is None else self.stable


def versions_before(repository: Repository, name: str) -> Before:
    """Read what the repository has of a model. If that fails, nothing is published.

    Raises:
        BundleError: aliases.json is invalid.
        UsageError: the repository cannot be read.
    """
    try:
        versions = repository.versions(name)
        return Before(repository.aliases(name).get(STABLE_ALIAS), versions[-1] if versions else None)
    except OSError as error:
        raise UsageError(
            f"the repository {repository.root} cannot be read: {error.strerror or error}; "
            "correct its path or permissions, or set another --repository"
        ) from error


def what_is_served(bundle: Bundle, before: Before, location: str) -> list[str]:
    """Return lines for people: the served version, and the command that changes it or serves it.

    Args:
        bundle: the imported version.
        before: the import.
        location: of the repository, as the user names it.
    """
    repository = f"--repository {shlex.quote(location)}"
    promote = f"lenserve models promote {bundle.model}"
    if before.stable is not None:
        why = f"which the alias {STABLE_ALIAS!r} names"
        return [
            f"served    is version {before.stable}, {why}, until `{promote}@{bundle.version} {repository}`"
        ]
    if before.newest is not None:
        why = f"without alias {STABLE_ALIAS!r} it is the newest one"
        back = f"to go back: `{promote}@{before.newest} {repository}`"
        return [f"served    is version {bundle.version} from now on: {why}; {back}"]
    return [
        f"served    is version {bundle.version}, the first one of {bundle.model}",
        f"next      `lenserve serve {repository}`, then `lenserve classify IMAGE --model {bundle.model}`",
    ]
