"""Which models make a server not ready."""

from types import SimpleNamespace
from typing import cast

import pytest

from serving.models.readiness import Readiness
from serving.models.versions import Model, Version


def _version(*, broken: str = "") -> Version:
    """A version of which only the state counts."""
    return cast("Version", SimpleNamespace(broken=broken))


SERVES = Model("serves", {1: _version()}, default=1)
REFUSED = Model("refused", refused={3: "its digest differs"})
BROKEN = Model("broken", {2: _version(broken="NaN")}, default=2)
UNREADABLE = Model("unreadable", problem="Permission denied")


def _problem(readiness: Readiness, *models: Model, unloaded: tuple[str, ...] = ()) -> str:
    return readiness.problem({each.name: each for each in models}, unloaded=unloaded, loading={"new"})


def test_a_server_without_models_is_ready() -> None:
    """It has nothing to serve, but nothing is wrong."""
    assert not _problem(Readiness())


@pytest.mark.parametrize("other", [REFUSED, UNREADABLE])
def test_a_model_that_never_loaded_costs_nobody_else(other: Model) -> None:
    """The others serve; alone, it makes the server not ready."""
    assert not _problem(Readiness(), SERVES, other)
    assert _problem(Readiness(), other) == f"model {other.name!r} cannot answer: {other.why_not_ready}"


def test_a_model_that_served_and_cannot_answer_makes_the_server_not_ready() -> None:
    """The message gives the version and the reason."""
    assert _problem(Readiness(), SERVES, BROKEN) == "model 'broken' cannot answer: version 2 is broken: NaN"


def test_with_strict_readiness_every_known_model_counts() -> None:
    """As in Triton. A model that was unloaded on request does not."""
    strict = Readiness(is_strict=True)
    assert not _problem(strict, SERVES)
    assert _problem(strict, SERVES, REFUSED) == (
        "model 'refused' cannot answer: version 3 was refused: its digest differs"
    )
    assert not _problem(strict, SERVES, Model("gone", problem="unloaded"), unloaded=("gone",))


def test_a_required_model_counts_before_it_served() -> None:
    """Also if it is missing, loading, or was unloaded."""
    readiness = Readiness(("serves", "refused", "new", "none"))
    assert _problem(readiness, SERVES, REFUSED, unloaded=("refused",)) == (
        "the required model 'new' is loading; the required model 'none' is not in the repository; "
        "model 'refused' cannot answer: version 3 was refused: its digest differs"
    )


def test_a_message_names_five_models_at_most() -> None:
    """A thousand reasons would not help."""
    failing = [Model(f"m{number}", problem="bad") for number in range(9)]
    problem = _problem(Readiness(), *failing)
    assert problem.count("cannot answer") == 5
    assert problem.endswith("; and 4 more models")
