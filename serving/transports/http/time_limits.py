"""Limits in time of one connection: a timer checks it every few seconds. Requests read no clock."""

import asyncio
import random
from collections.abc import Callable, Iterable

from serving.transports.http.asgi import RequestTooSlow
from serving.transports.http.byte_budget import RequestBytes
from serving.transports.http.limits import Limits


class PeriodicCheck:
    """Calls a function every few seconds, with the event loop's time, until `stop`."""

    __slots__ = ("_check", "_interval_s", "_loop", "_timer")

    def __init__(self, check: Callable[[float], object], interval_s: float) -> None:
        self._check = check
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(interval_s, self._run)

    def _run(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._run)
        self._check(self._loop.time())

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.cancel()


class Duration:
    """How long the same thing has been true."""

    __slots__ = ("_since_s", "_thing")

    def __init__(self) -> None:
        self._thing: object = None
        self._since_s = 0.0

    def of(self, thing: object, now_s: float) -> float:
        """Return the seconds since the first check with this thing; 0 for None: nothing is true."""
        if thing is None or thing != self._thing:
            self._thing, self._since_s = thing, now_s
        return now_s - self._since_s


class Age:
    """The age after which a connection is closed, different for each, so that clients move one by one."""

    __slots__ = ("_close_s", "_cut_s", "is_over")

    def __init__(self, limits: Limits, now_s: float) -> None:
        jitter = random.uniform(-1, 1) * limits.connection_age_jitter  # noqa: S311 - not a secret
        self._close_s = now_s + limits.max_connection_age_s * (1 + jitter)
        self._cut_s = self._close_s + limits.max_connection_age_grace_s
        self.is_over = False

    def check(
        self, now_s: float, *, close_when_idle: Callable[[], object], close: Callable[[], object]
    ) -> None:
        """Close a connection that is too old; cut it when its grace is over too."""
        if now_s >= self._cut_s:
            close()
        elif now_s >= self._close_s and not self.is_over:
            self.is_over = True
            close_when_idle()


class BodyRates:
    """Refuses requests whose bodies arrive too slowly while their application waits."""

    __slots__ = ("_limits", "_marks", "_window_s")

    def __init__(self, limits: Limits, *, max_piece_bytes: int = 0) -> None:
        """Start without requests.

        Args:
            limits: the lowest rate, and over how long it is measured.
            max_piece_bytes: bytes that are counted only when all of them have arrived.
        """
        self._limits = limits
        self._window_s = limits.body_window_s + max_piece_bytes / limits.min_body_bytes_per_s
        self._marks: dict[int, tuple[float, int]] = {}  # request -> time and bytes when its window began

    def check(self, waiting: Iterable[tuple[int, RequestBytes]], now_s: float) -> None:
        """Refuse those that were too slow.

        Args:
            waiting: numbered requests whose applications wait for more.
            now_s: on the event loop's clock.
        """
        limits = self._limits
        marks = {}
        for number, request in waiting:
            since_s, bytes_before = self._marks.get(number, (now_s, request.received_bytes))
            if now_s - since_s >= self._window_s:
                arrived_bytes = request.received_bytes - bytes_before
                if arrived_bytes < limits.min_body_bytes_per_s * limits.body_window_s:
                    request.refuse(
                        RequestTooSlow(
                            f"{arrived_bytes} bytes of the request arrived in {now_s - since_s:.0f} s, the "
                            f"lowest rate is {limits.min_body_bytes_per_s} bytes/s: send it faster, or in "
                            "smaller requests"
                        )
                    )
                    continue
                since_s, bytes_before = now_s, request.received_bytes
            marks[number] = since_s, bytes_before
        self._marks = marks
