"""Checks before publishing: each compares a value with its limit. A failed check prevents publishing."""

from collections.abc import Sequence

from serving.bundle.manifest import Strict
from training.errors import GateFailed


class Check(Strict):
    """One check before publishing."""

    name: str
    passed: bool
    detail: str


def at_least(name: str, value: float, limit: float, setting: str) -> Check:
    """Pass if the value reaches the limit; NaN does not. `setting`: recipe key of the limit."""
    return Check(name=name, passed=value >= limit, detail=f"{value:.4g}, minimum {limit:.4g} ({setting})")


def at_most(name: str, value: float, limit: float, setting: str) -> Check:
    """Pass if the value stays within the limit; NaN does not. `setting`: recipe key of the limit."""
    return Check(name=name, passed=value <= limit, detail=f"{value:.3g}, maximum {limit:.3g} ({setting})")


def raise_if_failed(checks: Sequence[Check]) -> None:
    """Raise if any check failed; the message names all failed checks.

    Raises:
        GateFailed: at least one check failed.
    """
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise GateFailed(f"not published: {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")
