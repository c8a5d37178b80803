"""Bytes of requests that have arrived and are not yet answered, of a process and of each connection.

A request is charged when its bytes arrive, until its answer is complete: bytes that the application has
received still count. A connection may hold as much as is free: one can fill half of the budget, two a third
each (A. Choudhury and E. Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
That alone would leave nothing after 15 clients that come one after the other, each of which takes half of the
rest. So the last quarter is for connections that hold little: each a 32nd of what is free.
"""

from collections.abc import Callable

from serving.transports.http.asgi import AnswerOverBudget, OverBudget, RequestRefused

# Of an open request, besides its headers: its task, stream and buffers take 8 to 10 KiB. Most of that stays
# in fragments of the allocator when many are freed: so a server holds 10,000 requests, and no more.
REQUEST_BYTES = 3 * 2**13
FREE_BODY_BYTES = 2**12  # of each body: they are in REQUEST_BYTES
# Input of no request yet may be this long although the budget is used up; it counts all the same.
# A frame of a large body is often incomplete: to close its connection would end all calls there.
_FREE_INPUT_BYTES = 2**14 + 2**10

_LITTLE = 32


class ByteBudget:
    """The budget of a process."""

    __slots__ = ("half_bytes", "kept_fields", "limit_bytes", "on_refused", "pending_bytes")

    def __init__(self, limit_bytes: int, on_refused: Callable[[str], object] = lambda _: None) -> None:
        """Start without requests.

        Args:
            limit_bytes: of all connections.
            on_refused: called with the reason when a request is refused.
        """
        self.limit_bytes = limit_bytes
        self.half_bytes = limit_bytes // 2  # as long as all connections hold less, any of them may hold it
        self.on_refused = on_refused
        self.pending_bytes = 0
        self.kept_fields = 0  # of heads that connections keep: see http2/headers.py

    def to_leave(self, pending_bytes: int, total_bytes: int) -> int:
        """Return how much must stay free if a connection is to hold so much, and all connections so much."""
        if total_bytes <= self.half_bytes:
            return 0
        return max(pending_bytes, min(_LITTLE * pending_bytes, self.limit_bytes // 4))


class ConnectionShare:
    """The share of one connection in the budget of its process."""

    __slots__ = ("budget", "input_bytes", "pending_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.pending_bytes = 0
        self.input_bytes = 0  # of them, those of input that belongs to no request yet

    def charge(self, size: int) -> None:
        """Count received bytes.

        Raises:
            OverBudget: this connection would hold more than is free. Nothing is charged.
        """
        budget = self.budget
        pending_bytes, total_bytes = self.pending_bytes + size, budget.pending_bytes + size
        if total_bytes + budget.to_leave(pending_bytes, total_bytes) > budget.limit_bytes:
            budget.on_refused(OverBudget.reason)
            raise OverBudget(
                f"a request needs {size} more bytes, but its connection holds {self.pending_bytes} and all "
                f"connections hold {budget.pending_bytes} of {budget.limit_bytes} (--max-pending-bytes): "
                "retry later, or send fewer requests at a time"
            )
        self.pending_bytes = pending_bytes
        budget.pending_bytes = total_bytes

    def release(self, size: int) -> None:
        """Stop counting bytes that were charged."""
        self.pending_bytes -= size
        self.budget.pending_bytes -= size

    def hold_input(self, size: int) -> None:
        """Count input that belongs to no request yet: a part of a frame, a head, or a pipelined request.

        Raises:
            OverBudget: it is long, and this connection would hold more than is free. It is counted all the
                same, until the connection has made room or is closed.
        """
        change, self.input_bytes = size - self.input_bytes, size
        try:
            if change > 0 and size > _FREE_INPUT_BYTES:
                self.charge(change)
                return
        except OverBudget:
            self.release(-change)
            raise
        self.release(-change)


class RequestBytes:
    """The bytes of one request in the budget. `asgi.RequestBody` is what applications see of it."""

    __slots__ = ("_share", "charged_bytes", "is_refused", "may_pause", "received_bytes", "refusal")

    def __init__(self, share: ConnectionShare) -> None:
        self._share = share
        self.is_refused = False
        self.refusal: RequestRefused | None = None  # what `receive` raises next
        self.charged_bytes = 0
        self.received_bytes = 0  # of the body
        self.may_pause = False

    def open_charge(self, head_bytes: int) -> None:
        """Charge an open request with headers of this size, or refuse it."""
        size, share = REQUEST_BYTES + head_bytes, self._share
        budget = share.budget
        total_bytes = budget.pending_bytes + size
        if total_bytes <= budget.half_bytes:
            # As in `charge`. Calls would take 0.3 us of the 34 us of a LeNet-5 request.
            budget.pending_bytes = total_bytes
            share.pending_bytes += size
            self.charged_bytes = size
            return
        try:
            self.charge(size)
        except OverBudget as error:
            self.refuse(error)

    def charge_body(self, size: int) -> bool:
        """Charge counted bytes of the body; return whether to keep them: not those of a refused request."""
        if self.received_bytes > FREE_BODY_BYTES and not self.is_refused:
            try:
                self.charge(min(size, self.received_bytes - FREE_BODY_BYTES))
            except OverBudget as error:
                self.refuse(error)
        return not self.is_refused

    def refuse(self, refusal: RequestRefused) -> None:
        """Receive no more of this request, and forget what the application has not received."""
        if not isinstance(refusal, OverBudget):  # which is counted where it is raised
            self._share.budget.on_refused(refusal.reason)
        # Frames lead to this request: a reference cycle.
        self.is_refused, self.refusal = True, refusal.with_traceback(None)

    def raise_refusal(self) -> None:
        """Raise the refusal, if any. OverBudget only once: then the application can wait for the rest."""
        refusal = self.refusal
        if isinstance(refusal, OverBudget):
            self.refusal = None
        try:
            if refusal is not None:
                raise refusal.with_traceback(None)
        finally:
            del refusal  # its frames would hold it: a reference cycle

    def take_whole(self) -> bytes | None:
        """See `asgi.RequestBody`."""
        return None

    def close_charge(self) -> None:
        """Release the whole charge: the request has ended."""
        size, share = self.charged_bytes, self._share
        self.charged_bytes = 0
        share.pending_bytes -= size
        share.budget.pending_bytes -= size

    def charge(self, size: int) -> None:
        """Charge more bytes: see `asgi.RequestBody`.

        Raises:
            OverBudget: as in `ConnectionShare.charge`.
        """
        self._share.charge(size)
        self.charged_bytes += size

    def hold_answer(self, size: int) -> int:
        """Charge an answer that waits for its client to read, as far as it is longer than its request.

        Returns:
            The charge, to be released when the answer has been sent.

        Raises:
            AnswerOverBudget: as in `charge`, but for the application's `send`.
        """
        more = max(0, size - max(0, self.charged_bytes - REQUEST_BYTES) - FREE_BODY_BYTES)
        try:
            if more:
                self.charge(more)
        except OverBudget:
            raise AnswerOverBudget(
                f"an answer of {size} bytes has no room: too many wait for their clients to read them "
                "(--max-pending-bytes): retry later, or send fewer requests at a time"
            ) from None
        return more

    def release(self, size: int) -> None:
        """Release bytes before the request ends, except those of the request itself."""
        size = min(size, self.charged_bytes - REQUEST_BYTES)
        if size > 0:
            self.charged_bytes -= size
            self._share.release(size)
