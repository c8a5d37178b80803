"""When a process is late, and when it hangs."""

from serving.processes.heartbeat import Heartbeat


def _look(heartbeat: Heartbeat, seconds: float) -> Heartbeat:
    for _ in range(round(seconds / 0.25)):
        heartbeat.look()
    return heartbeat


def test_a_process_that_beats_is_neither_late_nor_hung() -> None:
    """Two beats may be missing."""
    heartbeat = Heartbeat(hung_after_s=5.0)
    heartbeat.begin_serving()
    for _ in range(10):
        heartbeat.beat()
        _look(heartbeat, 0.75)
        assert not heartbeat.is_late


def test_silence_is_late_after_a_second_and_hung_after_the_limit() -> None:
    """A beat between them makes it good again."""
    heartbeat = Heartbeat(hung_after_s=5.0)
    heartbeat.begin_serving()
    assert (_look(heartbeat, 1.0).is_late, heartbeat.is_hung) == (True, False)
    assert not _look(heartbeat, 4.0).is_hung
    assert _look(heartbeat, 0.25).is_hung
    heartbeat.beat()
    assert (heartbeat.is_late, heartbeat.is_hung) == (False, False)


def test_a_start_has_its_own_limit() -> None:
    """A process that does not serve yet is not late, and its imports may take longer than the limit."""
    heartbeat = Heartbeat(hung_after_s=5.0, starts_within_s=60.0)
    heartbeat.beat()
    assert (_look(heartbeat, 60.0).is_late, heartbeat.is_hung) == (False, False)
    assert _look(heartbeat, 0.25).is_hung


def test_a_short_limit_makes_a_process_late_before_it_hangs() -> None:
    """After half of it."""
    heartbeat = Heartbeat(hung_after_s=1.0)
    heartbeat.begin_serving()
    assert _look(heartbeat, 0.5).is_late
