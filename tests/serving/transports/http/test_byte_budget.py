"""The budget of bytes: what one connection and all of them may hold."""

import pytest

from serving.transports.http.asgi import AnswerOverBudget, OverBudget
from serving.transports.http.byte_budget import (
    FREE_BODY_BYTES,
    REQUEST_BYTES,
    ByteBudget,
    ConnectionShare,
    RequestBytes,
)

LIMIT_BYTES = 1000


def _fill(share: ConnectionShare) -> int:
    """Charge byte by byte until it is refused; return what the connection holds."""
    while _grows(share):
        pass
    return share.pending_bytes


def _grows(share: ConnectionShare) -> bool:
    try:
        share.charge(1)
    except OverBudget:
        return False
    return True


def test_one_connection_fills_half_of_the_budget() -> None:
    """The other half is for newcomers."""
    assert _fill(ConnectionShare(ByteBudget(LIMIT_BYTES))) == LIMIT_BYTES // 2


@pytest.mark.parametrize("connections", [2, 3])
def test_equal_connections_leave_room_for_one_more(connections: int) -> None:
    """Each of n that grow together holds 1 / (n + 1); the next one can hold a part of what is left."""
    budget = ByteBudget(LIMIT_BYTES)
    shares = [ConnectionShare(budget) for _ in range(connections)]
    while all(_grows(share) for share in shares):
        pass
    each = LIMIT_BYTES // (connections + 1)
    assert {share.pending_bytes for share in shares} <= {each - 1, each, each + 1}
    assert _fill(ConnectionShare(budget)) >= (LIMIT_BYTES - connections * each) // 33
    assert budget.pending_bytes <= LIMIT_BYTES


@pytest.mark.parametrize("connections", [9, 99])
def test_many_equal_connections_leave_a_quarter(connections: int) -> None:
    """What they hold together does not grow with their number; a newcomer can hold a 32nd of the rest."""
    budget = ByteBudget(100 * LIMIT_BYTES)
    shares = [ConnectionShare(budget) for _ in range(connections)]
    while all(_grows(share) for share in shares):
        pass
    assert budget.pending_bytes <= 77 * LIMIT_BYTES
    assert _fill(ConnectionShare(budget)) >= 23 * LIMIT_BYTES // 33


def test_clients_that_come_one_after_the_other_leave_room_for_one_more() -> None:
    """Each of 100 takes as much as it can get; there is still room for two requests of a newcomer."""
    budget = ByteBudget(2**28)
    for _ in range(100):
        share = ConnectionShare(budget)
        size = 2**24
        while size > 2**8:
            try:
                share.charge(size)
            except OverBudget:
                size //= 2
    newcomer = ConnectionShare(budget)
    newcomer.charge(REQUEST_BYTES)
    newcomer.charge(REQUEST_BYTES)


def test_a_refused_charge_counts_nothing_and_names_the_numbers() -> None:
    """The message has the size, what is held, the limit and its option; the refusal is reported."""
    refused: list[str] = []
    budget = ByteBudget(LIMIT_BYTES, refused.append)
    share = ConnectionShare(budget)
    share.charge(300)
    expected = r"300 more bytes.* holds 300 and all .* hold 300 of 1000 \(--max-pending-bytes\): retry"
    with pytest.raises(OverBudget, match=expected):
        share.charge(300)
    assert (share.pending_bytes, budget.pending_bytes, refused) == (300, 300, ["pending_bytes"])


def test_a_request_is_released_as_a_whole_and_never_below_its_own_cost() -> None:
    """An application that releases too much does not make requests free."""
    budget = ByteBudget(2**20)
    request = RequestBytes(ConnectionShare(budget))
    request.open_charge(head_bytes=50)
    assert budget.pending_bytes == REQUEST_BYTES + 50
    request.charge(950)
    request.release(700)
    assert budget.pending_bytes == REQUEST_BYTES + 300
    request.release(10**9)
    assert budget.pending_bytes == REQUEST_BYTES
    request.close_charge()
    assert budget.pending_bytes == 0


@pytest.mark.parametrize("size", [100, FREE_BODY_BYTES, 10 * FREE_BODY_BYTES])
def test_an_answer_no_longer_than_its_request_always_has_room(size: int) -> None:
    """It takes the place of the request, whose first bytes are counted with the request itself."""
    share = ConnectionShare(ByteBudget(16 * REQUEST_BYTES))
    request = RequestBytes(share)
    request.open_charge(head_bytes=50)
    request.received_bytes = size
    assert request.charge_body(size)
    _fill(share)

    assert request.hold_answer(size) == 0
    with pytest.raises(AnswerOverBudget, match=r"an answer of 1000000 bytes has no room: .* retry later"):
        request.hold_answer(10**6)
