"""The memory of large batches is returned some time after the last one."""

import threading

import pytest

from serving.engine.arena import ArenaTimer


def test_a_large_batch_succeeds_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no memory for one; the next large batch tries again."""
    timer, is_shrunk = ArenaTimer(0.001), threading.Event()

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        timer.start(is_shrunk.set)
    assert not is_shrunk.is_set()
    timer.start(is_shrunk.set)
    assert is_shrunk.wait(timeout=10)
    timer.close()
