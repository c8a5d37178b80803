"""Named checks with their numbers, and the gate: nothing passes with a failed one."""

from collections.abc import Sequence

from serving.bundle.manifest import Strict
from training.errors import GateFailed


class Check(Strict):
    """One thing that was looked at before publishing."""

    name: str
    passed: bool
    detail: str


def at_least(name: str, value: float, limit: float) -> Check:
    """Passes where the value reaches its limit."""
    return Check(name=name, passed=value >= limit, detail=f"{value:.4g}, at least {limit:.4g} is needed")


def at_most(name: str, value: float, limit: float) -> Check:
    """Passes where the value stays within its limit; a value that is no number does not."""
    return Check(name=name, passed=value <= limit, detail=f"{value:.3g}, at most {limit:.3g} is allowed")


def raise_if_failed(checks: Sequence[Check]) -> None:
    """Let pass, or name everything that failed.

    Raises:
        GateFailed: at least one check failed.
    """
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise GateFailed(f"not published, {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")
