"""An event loop polls for the next request, or sleeps."""

from typing import Any

from serving.transports.http.busy_poll import LIMIT_S, BusyPoll


class Loop:
    """A fake event loop with a fake clock, and its busy poll."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[Any] = []
        self.busy_poll = BusyPoll(self.due.append, lambda: self.now_s)

    def turn(self) -> bool:
        """Run one iteration; return whether anything ran."""
        due, self.due[:] = list(self.due), []
        for call in due:
            call()
        return bool(due)

    def serve(self, *, after_s: float) -> None:
        """One request, after a pause."""
        self.pause(after_s)
        self.busy_poll.begin()
        self.now_s += 0.001
        self.busy_poll.end()

    def pause(self, duration_s: float) -> None:
        """Advance the clock, in steps much shorter than the limit while the loop polls."""
        end_s = self.now_s + duration_s
        while self.now_s < end_s and self.turn():
            self.now_s = min(end_s, self.now_s + LIMIT_S / 10)
        self.now_s = end_s


def test_it_polls_while_the_next_request_arrives_at_once() -> None:
    """From the second request of a client that does not pause: the first could be the only one."""
    loop = Loop()
    loop.serve(after_s=1)
    assert not loop.due
    for _ in range(3):
        loop.serve(after_s=LIMIT_S / 2)
        assert len(loop.due) == 1


def test_it_sleeps_after_a_pause_until_requests_arrive_quickly_again() -> None:
    """Rare requests cost no polling."""
    loop = Loop()
    loop.serve(after_s=1)
    loop.serve(after_s=LIMIT_S / 2)
    loop.pause(1)
    assert not loop.due
    for _ in range(3):
        loop.serve(after_s=2 * LIMIT_S)
        assert not loop.due
    loop.serve(after_s=LIMIT_S / 2)
    assert loop.due


def test_it_does_not_poll_while_requests_run() -> None:
    """They need the CPU, and with several in flight the next event arrives soon anyway."""
    loop = Loop()
    loop.serve(after_s=1)
    loop.serve(after_s=LIMIT_S / 2)
    assert loop.due
    loop.busy_poll.begin()
    loop.turn()
    assert not loop.due
    loop.busy_poll.begin()
    loop.busy_poll.end()
    loop.busy_poll.end()
    assert not loop.due
