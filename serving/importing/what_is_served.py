"""Which version of a model is served after an import, and the next command."""

import shlex

from serving.bundle import STABLE_ALIAS, Bundle


def what_is_served(bundle: Bundle, served: int, location: str) -> list[str]:
    """Return lines for people: the served version, and the command that changes it or serves it.

    Args:
        bundle: the imported version.
        served: the version that servers answer with.
        location: of the repository, as the user names it.
    """
    repository = f"--repository {shlex.quote(location)}"
    if served != bundle.version:
        promote = f"lenserve models promote {bundle.model}@{bundle.version} {repository}"
        return [f"served    is version {served}, which the alias {STABLE_ALIAS!r} names, until `{promote}`"]
    return [
        f"served    is version {bundle.version}, the first one of {bundle.model}",
        f"next      `lenserve serve {repository}`, then `lenserve classify IMAGE --model {bundle.model}`",
    ]
