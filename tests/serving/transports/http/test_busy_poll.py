"""When an event loop goes on turning for the next request, and when it sleeps."""

from typing import Any

from serving.transports.http.busy_poll import LIMIT_S, BusyPoll


class Loop:
    """An event loop whose time stands still, and its busy poll."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[Any] = []
        self.busy_poll = BusyPoll(self.due.append, lambda: self.now_s)

    def turn(self) -> bool:
        """Turn once; whether there was anything to do."""
        due, self.due[:] = list(self.due), []
        for call in due:
            call()
        return bool(due)

    def serve(self, *, after_s: float) -> None:
        """One request after a pause, alone."""
        self.pause(after_s)
        self.busy_poll.begin()
        self.now_s += 0.001
        self.busy_poll.end()

    def pause(self, duration_s: float) -> None:
        """Let time go by in steps that are much shorter than the limit, as long as the loop polls."""
        end_s = self.now_s + duration_s
        while self.now_s < end_s and self.turn():
            self.now_s = min(end_s, self.now_s + LIMIT_S / 10)
        self.now_s = end_s


def test_it_is_awake_while_the_next_one_comes_at_once() -> None:
    """From the second request of a client that does not pause; the first could be the only one."""
    loop = Loop()
    loop.serve(after_s=1)
    assert not loop.due
    for _ in range(3):
        loop.serve(after_s=LIMIT_S / 2)
        assert len(loop.due) == 1


def test_it_sleeps_when_nobody_came_and_until_somebody_comes_quickly_again() -> None:
    """Requests that are far apart cost no turn."""
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


def test_it_does_not_turn_beside_requests() -> None:
    """Who runs needs the time; and of several in flight some other one always wakes it."""
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
