"""Which session a file gets where the fastest one fails; test_engine.py has real sessions."""

from pathlib import Path
from typing import Any

import pytest

from serving.engine.sessions import Optimizations, SessionFactory
from serving.errors import BundleError, OutOfMemory

FILE = Path("model.onnx")


def test_the_best_plan_that_opens_is_taken(log_events: Any) -> None:
    """Where all is well, nothing is tried or told."""
    tried: list[Optimizations] = []
    assert (
        SessionFactory(
            FILE, lambda optimizations: tried.append(optimizations) or "session", Optimizations(nhwc=True)
        ).open()
        == "session"
    )
    assert tried == [Optimizations(nhwc=True)]
    assert not log_events.records


def test_a_plan_that_does_not_open_gives_way_and_the_log_says_why(log_events: Any) -> None:
    """The plainest session serves as well, only slower."""

    def open_session(optimizations: Optimizations) -> str:
        if optimizations.nhwc:
            raise BundleError("no kernel")
        return "plain"

    factory = SessionFactory(FILE, open_session, Optimizations(nhwc=True))
    assert (factory.open(), factory.optimizations) == ("plain", Optimizations())
    (told,) = log_events.named("nhwc_off")
    assert (told.levelname, told.file, told.reason) == ("WARNING", "model.onnx", "no kernel")


def test_a_file_that_opens_in_no_way_is_refused_and_no_plan_is_blamed(log_events: Any) -> None:
    """The plainest session's error is the file's own."""

    def fail(optimizations: Optimizations) -> None:
        raise BundleError(f"no graph: {optimizations}")

    with pytest.raises(BundleError, match=r"no graph: Optimizations\(nhwc=False"):
        SessionFactory(FILE, fail, Optimizations(nhwc=True)).open()
    assert not log_events.records


def test_lack_of_memory_is_no_reason_for_another_plan() -> None:
    """It is told as what it is."""

    def fail(_plan: Optimizations) -> None:
        raise OutOfMemory("cuda:0 is out of memory")

    with pytest.raises(OutOfMemory):
        SessionFactory(FILE, fail, Optimizations(nhwc=True)).open()


def test_a_plan_is_given_up_until_the_plainest_is_left(log_events: Any) -> None:
    """What it was given up for is told once."""
    factory = SessionFactory(FILE, lambda optimizations: optimizations, Optimizations(nhwc=True))
    assert factory.drop_optimization("golden probabilities differ")
    assert factory.open() == Optimizations()
    assert not factory.drop_optimization("again")
    (told,) = log_events.named("nhwc_off")
    assert told.reason == "golden probabilities differ"
