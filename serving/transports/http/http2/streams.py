"""The streams of one connection: opens them, feeds them with the frames of their requests, and ends them."""

import asyncio
import logging
from collections.abc import Callable, Iterator

from serving.transports.http.asgi import App, OverBudget
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.byte_budget import REQUEST_BYTES, ConnectionShare
from serving.transports.http.http2 import frames, rate_limits, turns
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, HeadTooLarge, StreamBroken
from serving.transports.http.http2.headers import HeaderReader, RequestHead, write_head
from serving.transports.http.http2.output import Output
from serving.transports.http.http2.rate_limits import RateLimits
from serving.transports.http.http2.receive_window import ReceiveWindow
from serving.transports.http.http2.stream import Http2Stream
from serving.transports.http.http2.turns import Turns

MAX_STREAMS = 1024  # whose answer or reset has not been sent
# Tasks whose stream is over: cancelled, or about to return. Rapid resets could leave any number of them.
_MAX_ENDING_TASKS = 1024
_CANCELLED_PER_ROUND = 32
_WOKEN_PER_ROUND = 64
_KEPT_RESETS = 1024  # streams that we reset last: the client may not know it yet

_WINDOW_WORK = 2  # of a window that SETTINGS change: most streams do not wait for it

_TOO_LARGE = write_head(431, ())

_log = logging.getLogger(__name__)


class Streams:
    """The streams of a connection, by number."""

    def __init__(
        self,
        app: App,
        *,
        output: Output,
        window: ReceiveWindow,
        share: ConnectionShare,
        turns: Turns,
        rates: RateLimits,
        busy_poll: BusyPoll,
        on_ended: Callable[[], object],
        on_broken: Callable[[ConnectionBroken], object],
    ) -> None:
        """Start without streams.

        Args:
            app: answers requests.
            output: sends frames.
            window: counts the bytes of all requests.
            share: of the connection in the budget of bytes.
            turns: counts the work, and holds the input while too many tasks are ending.
            rates: of what clients do wrong.
            busy_poll: counts the requests of all connections.
            on_ended: called when the last task has ended.
            on_broken: called when the connection must be closed.
        """
        self.last_number = 0  # highest number opened so far
        self.initial_send_window_bytes = frames.DEFAULT_WINDOW_BYTES
        self.accepts = True  # otherwise new streams are ignored: GOAWAY has told the client
        self._app = app
        self._output = output
        self._window = window
        self._share = share
        self._turns = turns
        self._rates = rates
        self._busy_poll = busy_poll
        self._on_ended = on_ended
        self._on_broken = on_broken
        self._headers = HeaderReader(client=output.client, budget=share.budget)
        self._streams: dict[int, Http2Stream] = {}  # open, or with a task that has not ended
        self._cancelled: list[Http2Stream] = []  # that `cancel_all` has not reached yet
        self._to_wake: list[Http2Stream] = []  # that `_wake_some` has not reached yet, the oldest last
        self._resets: dict[int, None] = {}  # streams that we reset, the latest last

    def __bool__(self) -> bool:
        """Whether a stream is open or a task has not ended."""
        return bool(self._streams)

    def waiting(self) -> Iterator[tuple[int, Http2Stream]]:
        """Yield the streams, by number, whose applications wait for more of the request."""
        for number, each in self._streams.items():
            if each.is_waiting:
                yield number, each

    def make_room(self, size: int, refusal: OverBudget) -> bool:
        """Refuse the newest incomplete requests until they held this many bytes; return False if too few do.

        Older requests are nearer to their end. Those that are refused already will be free soon.
        """
        refused: list[Http2Stream] = []
        for each in reversed(self._streams.values()):
            if size > 0 and not each.request_is_over:
                refused.append(each)
                size -= max(each.charged_bytes, REQUEST_BYTES)
        if size > 0:
            return False
        for each in refused:
            if not each.is_refused:
                each.refuse(refusal)
        return True

    # Frames of the client.

    def on_headers(self, number: int, flags: int, block: bytes) -> None:
        """HEADERS: a request, or its trailers.

        Raises:
            ConnectionBroken: as RFC 9113 says, or the client is over a rate.
        """
        ends = (flags & frames.END_STREAM) != 0
        try:
            if number > self.last_number:
                self._open(number, block, ends=ends)
            else:
                self._on_trailers(number, block, ends=ends)
        except StreamBroken as broken:
            self._rates.take(rate_limits.FAULTS, rate_limits.head_cost(len(block)))
            self._reset(number, broken.code)

    def _open(self, number: int, block: bytes, *, ends: bool) -> None:
        if not number & 1:
            raise _protocol_error(f"stream {number} has an even number: clients open odd ones")
        if not self.accepts:
            self._turns.work_left -= turns.head_work(len(block))
            self._headers.skip(block)
            return
        self.last_number = number
        try:
            head = self._headers.known(block) or self._decode(block)
        except HeadTooLarge:
            self._refuse_head(number, len(block), ends=ends)
            return
        if len(self._streams) >= MAX_STREAMS and not self._has_room():
            self._rates.take(rate_limits.REFUSALS)
            self._reset(number, ErrorCode.REFUSED_STREAM)
            return
        opened = Http2Stream(
            number,
            head.content_length,
            self._output,
            self._window,
            self.initial_send_window_bytes,
            share=self._share,
        )
        opened.open_charge(head.size_bytes)
        if ends:
            opened.end_request()
        self._turns.work_left -= turns.REFUSED_WORK if opened.is_refused else turns.STREAM_WORK
        self._output.open_streams += 1
        self._streams[number] = opened
        self._busy_poll.begin()
        opened.start(self._app(head.scope, opened, opened.send), self._on_done)

    def _decode(self, block: bytes) -> RequestHead:
        self._turns.work_left -= turns.head_work(len(block))
        return self._headers.read(block)

    def _has_room(self) -> bool:
        """Return whether another stream may be opened; hold further input if too many tasks are ending."""
        if self._output.open_streams >= MAX_STREAMS:
            return False
        self._hold_input()
        return True

    def _refuse_head(self, number: int, block_bytes: int, *, ends: bool) -> None:
        self._rates.take(rate_limits.FAULTS, rate_limits.head_cost(block_bytes))
        self._output.reply(self._output.headers(number, frames.END_STREAM, _TOO_LARGE))
        if not ends:
            self._reset(number, ErrorCode.NO_ERROR)

    def _on_trailers(self, number: int, block: bytes, *, ends: bool) -> None:
        self._turns.work_left -= turns.head_work(len(block))
        found = self._streams.get(number)
        if found is None or number in self._resets:
            self._headers.skip(block)
            self._check_was_opened(number)
            if number not in self._resets:
                raise ConnectionBroken(
                    ErrorCode.STREAM_CLOSED, f"HEADERS on stream {number}, which is closed"
                )
            return
        if found.request_is_over:
            self._headers.skip(block)
            raise StreamBroken(ErrorCode.STREAM_CLOSED, "HEADERS after the end of the request")
        self._headers.read_trailers(block)
        if not ends:
            raise StreamBroken(ErrorCode.PROTOCOL_ERROR, "trailers do not end the stream")
        found.end_request()

    def on_data(self, number: int, flags: int, payload: bytes) -> None:
        """DATA: a part of a request.

        Raises:
            ConnectionBroken: as RFC 9113 says, or the client is over a rate.
        """
        size = len(payload)
        if not self._window.receive(size):
            raise ConnectionBroken(
                ErrorCode.FLOW_CONTROL_ERROR, "the client sent more than the window of the connection"
            )
        body = frames.unpadded(payload, flags & frames.PADDED) if flags & frames.PADDED else payload
        ends = (flags & frames.END_STREAM) != 0
        if not body and not ends:
            self._rates.take(rate_limits.EMPTY_DATA)
        found = self._streams.get(number)
        if found is None or found.request_is_over:
            self._check_was_opened(number)
            self._window.consume(size)
            if number <= self.last_number and number not in self._resets:
                self._fault(number, ErrorCode.STREAM_CLOSED)
            return
        if size > len(body):
            self._window.consume(size - len(body))
        try:
            found.receive_data(body, size, ends=ends)
        except StreamBroken as broken:
            self._fault(number, broken.code)

    def on_reset(self, number: int, payload: bytes) -> None:
        """RST_STREAM: cancels a request.

        Raises:
            ConnectionBroken: as RFC 9113 says, or the client is over a rate.
        """
        frames.read_number(payload, "RST_STREAM")
        self._check_was_opened(number)
        self._rates.take(rate_limits.RESETS)
        found = self._streams.get(number)
        if found is not None:
            self._cancel(found)

    def on_window_update(self, number: int, more_bytes: int) -> None:
        """WINDOW_UPDATE of one stream.

        Raises:
            ConnectionBroken: as RFC 9113 says, or the client is over a rate.
        """
        self._check_was_opened(number)
        found = self._streams.get(number)
        if found is not None:
            if found.waits_for_room:
                self._turns.work_left -= turns.WAKE_WORK
            try:
                found.grow_send_window(more_bytes)
            except StreamBroken as broken:
                self._fault(number, broken.code)

    def on_priority(self, number: int, payload: bytes) -> None:
        """PRIORITY: ignored, but its length is checked.

        Raises:
            ConnectionBroken: as RFC 9113 says, or the client is over a rate.
        """
        if not number:
            raise _protocol_error("PRIORITY on stream 0")
        if len(payload) != frames.PRIORITY_BYTES:
            message = f"PRIORITY has {len(payload)} bytes, expected {frames.PRIORITY_BYTES}"
            if number > self.last_number:  # a stream that is idle cannot be reset
                raise ConnectionBroken(ErrorCode.FRAME_SIZE_ERROR, message)
            self._fault(number, ErrorCode.FRAME_SIZE_ERROR)

    def change_initial_send_window(self, window_bytes: int) -> None:
        """Adjust the windows of open streams by the difference: RFC 9113, section 6.9.2."""
        change_bytes = window_bytes - self.initial_send_window_bytes
        self.initial_send_window_bytes = window_bytes
        self._turns.work_left -= len(self._streams) * _WINDOW_WORK
        for each in self._streams.values():
            each.adjust_send_window(change_bytes)
        if change_bytes > 0:
            is_waking = bool(self._to_wake)
            self._to_wake = [each for each in reversed(self._streams.values()) if each.waits_for_room]
            if self._to_wake and not is_waking:
                self._wake_later()

    def _wake_later(self) -> None:
        self._turns.later(self._wake_some, min(len(self._to_wake), _WOKEN_PER_ROUND) * turns.WAKE_WORK)

    def _wake_some(self) -> None:
        """Wake streams whose window has grown, a part in each round: each sends a part of its answer."""
        for each in self._to_wake[-_WOKEN_PER_ROUND:]:
            each.wake()
        del self._to_wake[-_WOKEN_PER_ROUND:]
        if self._to_wake:
            self._wake_later()

    def _check_was_opened(self, number: int) -> None:
        if not number & 1 or (number > self.last_number and self.accepts):
            raise _protocol_error(f"stream {number} was never opened")

    # The ends of streams.

    def cancel_all(self) -> None:
        """Cancel all requests: the connection is closing, and needs no more callbacks.

        A part in each round: to end 1,000 tasks takes 40 ms.
        """
        self._on_ended = self._on_broken = _ignore  # the connection's methods: a reference cycle
        self._headers.forget()
        if not self._cancelled:
            self._cancelled = list(self._streams.values())
            self._cancel_some()

    def _cancel_some(self) -> None:
        for each in self._cancelled[-_CANCELLED_PER_ROUND:]:
            self._cancel(each)
        del self._cancelled[-_CANCELLED_PER_ROUND:]
        if self._cancelled:
            self._turns.later(self._cancel_some, _CANCELLED_PER_ROUND * turns.STREAM_WORK)

    def cancel_incomplete(self) -> None:
        """Reset the streams whose request the client can no longer complete."""
        for each in tuple(self._streams.values()):
            if not each.request_is_over:
                self._reset(each.number, ErrorCode.CANCEL)

    def _fault(self, number: int, code: ErrorCode) -> None:
        self._rates.take(rate_limits.FAULTS)
        self._reset(number, code)

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._output.reply(frames.reset(number, code))
        self._remember_reset(number)
        found = self._streams.get(number)
        if found is not None:
            self._cancel(found)

    def _remember_reset(self, number: int) -> None:
        """Frames that the client sends before it knows are ignored: RFC 9113, section 5.1."""
        self._resets[number] = None
        if len(self._resets) > _KEPT_RESETS:
            del self._resets[next(iter(self._resets))]

    def _cancel(self, cancelled: Http2Stream) -> None:
        """Cancel the application of a stream."""
        self._window.consume(cancelled.cancel())
        self._hold_input()

    def _hold_input(self) -> None:
        if self._ending_tasks > _MAX_ENDING_TASKS:
            self._turns.hold()

    @property
    def _ending_tasks(self) -> int:
        return len(self._streams) - self._output.open_streams

    def _on_done(self, ended: Http2Stream, task: asyncio.Task[None]) -> None:
        del self._streams[ended.number]
        self._busy_poll.end()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(
            error, OSError
        ):  # ASGI: `send` raises it if the client has disconnected
            _log.error("application_failed", exc_info=error)
        if not (ended.answer_is_over and ended.request_is_over):
            # The answer is complete, but the request is not; or there is no answer.
            code = ErrorCode.NO_ERROR if ended.answer_is_over else ErrorCode.INTERNAL_ERROR
            try:
                self._reset(ended.number, code)
            except ConnectionBroken as broken:
                self._on_broken(broken)
        left_bytes = ended.forget()
        if left_bytes:
            self._window.consume(left_bytes)
        if self._turns.is_held and self._ending_tasks <= _MAX_ENDING_TASKS:
            self._turns.release()
        if not self._streams:
            self._on_ended()


def _protocol_error(message: str) -> ConnectionBroken:
    return ConnectionBroken(ErrorCode.PROTOCOL_ERROR, message)


def _ignore(*_arguments: object) -> None:
    pass
