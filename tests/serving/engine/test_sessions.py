"""Which optimizations a session gets if the best ones fail; test_onnx.py has real sessions."""

from pathlib import Path

import pytest

from serving.engine.sessions import Optimizations, SessionFactory
from serving.errors import BundleError, OutOfMemory
from tests.serving.log_events import LogEvents

FILE = Path("model.onnx")


def test_the_best_optimizations_that_work_are_used(log_events: LogEvents) -> None:
    """If they open a session, nothing else is tried or logged."""
    tried: list[Optimizations] = []

    def open_session(optimizations: Optimizations) -> str:
        tried.append(optimizations)
        return "session"

    assert SessionFactory(FILE, open_session, Optimizations(nhwc=True)).open() == "session"
    assert tried == [Optimizations(nhwc=True)]
    assert not log_events.records


def test_an_optimization_that_opens_no_session_is_dropped_and_logged(log_events: LogEvents) -> None:
    """The session without it serves as well, only slower."""

    def open_session(optimizations: Optimizations) -> str:
        if optimizations.nhwc:
            raise BundleError("no kernel")
        return "plain"

    factory = SessionFactory(FILE, open_session, Optimizations(nhwc=True))
    assert (factory.open(), factory.optimizations) == ("plain", Optimizations())
    (told,) = log_events.named("nhwc_off")
    assert (told.levelname, told.file, told.reason) == ("WARNING", "model.onnx", "no kernel")


def test_a_file_that_never_opens_is_refused_and_no_optimization_is_blamed(log_events: LogEvents) -> None:
    """The error is that of the session without optimizations."""

    def fail(optimizations: Optimizations) -> None:
        raise BundleError(f"no graph: {optimizations}")

    with pytest.raises(BundleError, match=r"no graph: Optimizations\(nhwc=False"):
        SessionFactory(FILE, fail, Optimizations(nhwc=True)).open()
    assert not log_events.records


def test_lack_of_memory_drops_no_optimization() -> None:
    """It is raised as OutOfMemory."""

    def fail(_plan: Optimizations) -> None:
        raise OutOfMemory("cuda:0 is out of memory")

    with pytest.raises(OutOfMemory):
        SessionFactory(FILE, fail, Optimizations(nhwc=True)).open()


def test_optimizations_are_dropped_until_none_is_left(log_events: LogEvents) -> None:
    """The reason is logged once."""
    factory = SessionFactory(FILE, lambda optimizations: optimizations, Optimizations(nhwc=True))
    assert factory.drop_optimization("golden probabilities differ")
    assert factory.open() == Optimizations()
    assert not factory.drop_optimization("again")
    (told,) = log_events.named("nhwc_off")
    assert told.reason == "golden probabilities differ"
