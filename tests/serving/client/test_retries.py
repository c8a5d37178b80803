"""When a failed attempt is repeated: a pure policy, with a clock that the test moves."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from serving.client.messages import CallFailed, decode_error
from serving.client.retries import Retries

UNAVAILABLE = CallFailed("UNAVAILABLE", "gone")


class _Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _pauses_s(retries: Retries, clock: _Clock, failure: CallFailed = UNAVAILABLE) -> list[float]:
    """The pauses until the failure is final."""
    pauses_s: list[float] = []

    def fail_again() -> None:
        while True:
            pauses_s.append(retries.pause_s(failure))
            clock.now_s += pauses_s[-1]

    with pytest.raises(CallFailed) as caught:
        fail_again()
    assert caught.value is failure
    return pauses_s


def test_attempts_fill_the_time() -> None:
    """Pauses grow from 0.1 s to 1 s, each at least half of that, and none ends after the deadline."""
    clock = _Clock()

    pauses_s = _pauses_s(Retries(30.0, now_s=clock), clock)

    assert 0.05 <= pauses_s[0] <= 0.1
    assert all(0.5 <= each <= 1.0 for each in pauses_s[4:])
    assert 29.0 <= sum(pauses_s) < 30.0


def test_attempts_can_be_limited() -> None:
    """Three attempts have two pauses."""
    clock = _Clock()

    assert len(_pauses_s(Retries(30.0, 3, now_s=clock), clock)) == 2


@pytest.mark.parametrize("code", ["INTERNAL", "NOT_FOUND", "DEADLINE_EXCEEDED"])
def test_a_permanent_failure_is_final(code: str) -> None:
    """It is raised itself."""
    clock = _Clock()

    assert _pauses_s(Retries(30.0, now_s=clock), clock, CallFailed(code, "no")) == []


@pytest.mark.parametrize(
    ("code", "message", "cause"),
    [
        ("RESOURCE_EXHAUSTED", "a message has 9 bytes, limit is 8 bytes", "MESSAGE_TOO_LONG"),
        ("RESOURCE_EXHAUSTED", "send it without compression", "COMPRESSION_RATIO"),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 8)", ""),
        ("UNAVAILABLE", "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", ""),
        ("CANCELLED", "Channel closed!", ""),
    ],
)
def test_what_would_fail_again_is_not_transient(code: str, message: str, cause: str) -> None:
    """Although others with the same code are."""
    assert CallFailed(code, "another").is_transient
    assert not CallFailed(code, message, cause=cause).is_transient


def test_a_pause_is_as_long_as_the_server_asks_for() -> None:
    """At least, and a little more, so that not all clients return at once."""
    clock = _Clock()
    overloaded = CallFailed("RESOURCE_EXHAUSTED", "full", retry_after_s=3.0)

    pauses_s = _pauses_s(Retries(10.0, now_s=clock), clock, overloaded)

    assert len(pauses_s) >= 2
    assert all(each > 3.0 for each in pauses_s)


def test_the_server_asks_for_a_pause_with_retry_info() -> None:
    """google.rpc.RetryInfo in grpc-status-details-bin."""
    packed = AnyMessage()
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)))
    status = status_pb2.Status(code=8, message="full", details=[packed])
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))

    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailers, "full")

    assert decode_error(error).retry_after_s == 1.5


def test_details_of_another_status_are_ignored() -> None:
    """A proxy may have replaced the status and left the details."""
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status_pb2.Status(code=8).SerializeToString()))

    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers, "gone")

    assert decode_error(error).code == "UNAVAILABLE"


def test_an_endless_stream_may_have_many_outages() -> None:
    """Each may be as long as the time; a stream without images makes no progress between two of them."""
    clock = _Clock()
    retries = Retries(5.0, outage=True, now_s=clock)
    clock.now_s += 3600
    first_s = retries.pause_s(UNAVAILABLE)
    clock.now_s += 3600

    assert first_s <= 0.1
    assert 4.0 <= sum(_pauses_s(retries, clock)) < 5.0
    retries.note_progress()
    assert retries.pause_s(UNAVAILABLE) <= 0.1


def test_a_deadline_that_passes_during_an_attempt_names_the_failure_before() -> None:
    """DEADLINE_EXCEEDED alone would not say why the time went by."""
    retries = Retries(5.0)
    retries.pause_s(UNAVAILABLE)

    with pytest.raises(
        CallFailed, match=r"^DEADLINE_EXCEEDED: late; the attempt before failed: UNAVAILABLE: gone$"
    ):
        retries.pause_s(CallFailed("DEADLINE_EXCEEDED", "late"))
