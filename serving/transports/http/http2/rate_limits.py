"""Limits how often a client may cause work that no call needs: token buckets, one per kind of work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen on one connection."""

    what: str
    per_s: float
    burst: int


RESETS, FAULTS, REFUSALS, PINGS, SETTINGS, EMPTY_DATA, WINDOW_UPDATES, IGNORED = range(8)

# The comments name the most that real clients do.
RATES = (
    # A proxy that pools its users cancels hundreds of calls per second. 4,000 calls may reach their deadlines
    # at once. A call that is cancelled at once costs about 60 us: 2,000 per second are an eighth of a core.
    Rate("RST_STREAM", 2000, 10_000),
    # Malformed requests, of all users of a proxy. Large headers count several times: see `head_cost`.
    Rate("requests that break the rules of HTTP/2", 100, 1000),
    # A client that opens 4,000 streams before it reads our SETTINGS, twice.
    Rate("streams over the limit of SETTINGS", 1000, 10_000),
    # Keepalive: 1 per 10 s. grpc-go measures its bandwidth with one PING per round trip while it receives
    # answers: those are not counted (see `Http2Connection._on_ping`), except a few after the last answer.
    Rate("PING", 100, 1000),
    # grpc-go and gRPC's C core change their windows a few dozen times while they measure the bandwidth.
    Rate("SETTINGS", 10, 100),
    # Real clients send at most one per request; Envoy allows a single one in a row.
    Rate("DATA frames without data", 1000, 10_000),
    # Clients send one per quarter of a window, some one per DATA frame: 640 MB/s in steps of 32 KiB.
    Rate("WINDOW_UPDATE", 20_000, 40_000),
    # PRIORITY of old clients, one per request; GOAWAY, PRIORITY_UPDATE and unknown types are rare.
    Rate("frames that are ignored, such as PRIORITY", 1000, 10_000),
)

_HEAD_BYTES_PER_FAULT = 1024


class RateLimits:
    """The token buckets of one connection. A bucket starts full and refills when it is empty."""

    __slots__ = ("_left", "_now", "_rates", "_since_s")

    def __init__(self, now: Callable[[], float], rates: Sequence[Rate] = RATES) -> None:
        """Fill the buckets.

        Args:
            now: returns the time in seconds, on a monotonic clock.
            rates: one per kind.
        """
        self._now = now
        self._rates = rates
        self._left: list[float] = [each.burst for each in rates]
        self._since_s = [now()] * len(rates)  # time of the last refill

    def take(self, kind: int, cost: int = 1) -> None:
        """Count an event. The clock is only read when the bucket is empty.

        Raises:
            ConnectionBroken: the client is over its rate: ENHANCE_YOUR_CALM.
        """
        self._left[kind] -= cost
        if self._left[kind] < 0:
            self._refill(kind)

    def _refill(self, kind: int) -> None:
        rate, now_s = self._rates[kind], self._now()
        earned = (now_s - self._since_s[kind]) * rate.per_s
        self._since_s[kind] = now_s
        self._left[kind] = min(self._left[kind] + earned, rate.burst)
        if self._left[kind] < 0:
            raise ConnectionBroken(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"{rate.what}: more than {rate.per_s:g} per second after {rate.burst} at once; send fewer",
            )


def head_cost(block_bytes: int) -> int:
    """Return how many faults a bad header block counts as: decoding a large one costs many times as much."""
    return 1 + block_bytes // _HEAD_BYTES_PER_FAULT
