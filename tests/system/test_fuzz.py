"""A small run of every target, and what the runner notices."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.fuzz.runner import Result, run_target
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

INPUTS = 20_000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_thousands_of_changed_inputs_give_only_expected_outcomes(target: Target) -> None:
    """The same inputs each time. `python -m tests.fuzz` checks a million."""
    result = run_target(target, seed="suite", inputs=INPUTS * target.share // 1000)
    assert not result.failures, "\n\n".join(f"{each.repeat}\n{each.what}" for each in result.failures)
    assert len(result.outcomes) > 1, "all inputs end alike: the changes are too coarse"


def test_the_shares_add_up_and_cheap_targets_get_most() -> None:
    """A run has exactly as many inputs as were asked for."""
    assert sum(each.share for each in TARGETS) == 1000


class _Faulty:
    """A target that fails in a way of its own at each index."""

    def make(self, random: Random) -> float:
        return random.random()

    async def check(self, made: float) -> str:
        if made < 0.02:
            raise KeyError("x")
        if made < 0.04:
            logging.getLogger("serving").error("call_failed")
        return "high" if made > 0.5 else "low"


class _Slow:
    """A target that never ends."""

    def make(self, random: Random) -> float:
        return random.random()

    async def check(self, made: float) -> str:
        until_s = time.process_time() + 20
        while time.process_time() < until_s:
            pass
        return f"{made}"


def _run(checker: _Faulty | _Slow, inputs: int, first: int = 0) -> Result:
    @asynccontextmanager
    async def opened() -> AsyncIterator[_Faulty | _Slow]:
        yield checker

    return run_target(Target("faulty", 0, opened), seed="s", inputs=inputs, first=first, max_cpu_s=0.05)


def test_exceptions_and_logged_errors_are_failures_that_can_be_repeated() -> None:
    """A failure names its index, from which the same input is made again."""
    failures = _run(_Faulty(), 200).failures
    kinds = {each.what.strip().splitlines()[-1] for each in failures}
    assert kinds == {"KeyError: 'x'", "logged: call_failed"}
    for failure in failures:
        (again,) = _run(_Faulty(), 1, failure.index).failures
        assert again == failure
    assert failures[0].repeat.endswith(f"--target faulty --seed s --first {failures[0].index} --inputs 1")


def test_an_input_that_takes_too_long_is_a_failure() -> None:
    """Even if nothing ever returns to the event loop."""
    (failure,) = _run(_Slow(), 1).failures
    assert "an input took" in failure.what
