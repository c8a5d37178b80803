"""Checks the limits in time of one HTTP/2 connection."""

import asyncio
from collections.abc import Callable

from serving.transports.http.http2 import frames
from serving.transports.http.http2.frame_reader import FrameReader
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode
from serving.transports.http.http2.output import Output
from serving.transports.http.http2.receive_window import ReceiveWindow
from serving.transports.http.http2.streams import Streams
from serving.transports.http.http2.turns import Turns
from serving.transports.http.limits import Limits
from serving.transports.http.time_limits import Age, BodyRates, Duration, PeriodicCheck

_PING = frames.ping(b"are you?")


class TimeLimits:
    """Closes a connection that is silent, idle or too old, and refuses requests that arrive too slowly."""

    def __init__(
        self,
        limits: Limits,
        *,
        reader: FrameReader,
        turns: Turns,
        streams: Streams,
        window: ReceiveWindow,
        output: Output,
        close_when_idle: Callable[[], object],
        on_broken: Callable[[ConnectionBroken], object],
    ) -> None:
        """Start the timer.

        Args:
            limits: on the client.
            reader: knows whether a frame or a header block is incomplete.
            turns: input that waits for its turn is not the client's fault.
            streams: of the connection.
            window: of the connection.
            output: of the connection.
            close_when_idle: closes the connection gracefully.
            on_broken: closes it at once, with the error for the client.
        """
        self.is_heard = True  # set when bytes arrive
        self.has_ended = False  # the client has sent its last byte
        self._limits = limits
        self._reader = reader
        self._turns = turns
        self._streams = streams
        self._window = window
        self._output = output
        self._close_when_idle = close_when_idle
        self._on_broken = on_broken
        now_s = asyncio.get_running_loop().time()
        self._age = Age(limits, now_s)
        self._rates = BodyRates(limits, max_piece_bytes=frames.MAX_FRAME_BYTES)
        self._block, self._frame = Duration(), Duration()
        self._idle, self._full = Duration(), Duration()
        self._heard_s = now_s
        self._pinged_s: float | None = None
        self._resumes = 0  # of the output, at the last check
        self._timer = PeriodicCheck(self._check, limits.check_interval_s)

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.stop()
        del self._timer  # it leads here: a reference cycle

    def _check(self, now_s: float) -> None:
        limits, output = self._limits, self._output
        if not self._turns.is_waiting:
            self._check_input(now_s)
        if self._full.of(output.resumes if output.is_full else None, now_s) > limits.unread_answer_s:
            output.abort()
        elif self.has_ended or self._answers(now_s):
            idle = None if self._streams else self._streams.last_number
            if self._idle.of(idle, now_s) > limits.idle_timeout_s:
                self._close_when_idle()
            self._age.check(now_s, close_when_idle=self._close_when_idle, close=output.close)

    def _check_input(self, now_s: float) -> None:
        limits, reader = self._limits, self._reader
        # A frame may arrive at the lowest rate.
        frame_s = limits.head_s + frames.MAX_FRAME_BYTES / limits.min_body_bytes_per_s
        if self._block.of(reader.unfinished_block, now_s) > limits.head_s:
            self._break(f"the rest of a header block, or SETTINGS, did not arrive in {limits.head_s:g} s")
        elif self._frame.of(reader.unfinished_frame, now_s) > frame_s:
            self._break(f"the rest of a frame did not arrive in {frame_s:g} s")
        else:
            # Where the window is used up, applications are behind.
            self._rates.check(() if self._window.is_used_up else self._streams.waiting(), now_s)

    def _answers(self, now_s: float) -> bool:
        """Whether the client is there: a silent one is asked by PING."""
        # Neither is silent: a client whose input waits for us, nor one that reads a long answer.
        reads = self._output.resumes != self._resumes
        if self.is_heard or reads or self._turns.is_waiting:
            self.is_heard, self._heard_s, self._pinged_s = False, now_s, None
            self._resumes = self._output.resumes
        elif self._pinged_s is None:
            if now_s - self._heard_s > self._limits.ping_after_s:
                self._pinged_s = now_s
                self._output.write(_PING)
        elif now_s - self._pinged_s > self._limits.ping_timeout_s:
            self._output.abort()
            return False
        return True

    def _break(self, message: str) -> None:
        self._on_broken(ConnectionBroken(ErrorCode.ENHANCE_YOUR_CALM, message))
