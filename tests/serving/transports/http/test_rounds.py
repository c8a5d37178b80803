"""Connections share the event loop: a round of it handles only so much input, and then others go on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serving.transports.http.http1 import Http1Connection
from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.protocol_detection import ProtocolDetector
from serving.transports.http.rounds import WORK_PER_ROUND, Rounds
from tests.serving.transports.http.http2.applications import echo
from tests.serving.transports.http.http2.wire import FakeTransport, Wire

SPENT = -1


class Loop:
    """A fake event loop, and the turns that were taken in each of its iterations."""

    def __init__(self) -> None:
        self.due: list[Any] = []
        self.rounds = Rounds(self.due.append)
        self.taken: list[str] = []

    def turn(self, name: str, work: int = 0) -> Callable[[], None]:
        """A turn that takes so much work."""

        def take() -> None:
            self.taken.append(name)
            self.rounds.work_left -= work

        return take

    def iterate(self) -> list[str]:
        """Run one iteration; return the turns that were taken."""
        due, self.due[:] = list(self.due), []
        for call in due:
            call()
        taken, self.taken = self.taken, []
        return taken


def test_input_that_has_just_arrived_comes_before_input_that_had_a_turn() -> None:
    """A client that asks for little does not wait for clients that always ask for more."""
    loop = Loop()
    for name in "abc":
        loop.rounds.join(loop.turn(name), has_had_turn=True)
    loop.rounds.join(loop.turn("new"), has_had_turn=False)
    assert loop.iterate() == ["new", "a", "b", "c"]
    assert loop.due == []


def test_a_round_ends_when_its_work_is_spent() -> None:
    """The others have their turns in the next iterations, in their order."""
    loop = Loop()
    for name in "abcde":
        loop.rounds.join(loop.turn(name, WORK_PER_ROUND // 2), has_had_turn=True)
    assert [loop.iterate() for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], []]


def test_a_connection_has_one_turn_in_a_round() -> None:
    """Even if it has more input and there is work left."""
    loop = Loop()

    def again() -> None:
        loop.taken.append("again")
        loop.rounds.join(again, has_had_turn=True)

    loop.rounds.join(again, has_had_turn=True)
    loop.rounds.join(loop.turn("other"), has_had_turn=True)
    assert [loop.iterate() for _ in range(3)] == [["again", "other"], ["again"], ["again"]]


def test_a_turn_that_fails_does_not_stop_the_others() -> None:
    """The event loop logs the error."""
    loop = Loop()

    def fail() -> None:
        raise ZeroDivisionError

    loop.rounds.join(fail, has_had_turn=False)
    loop.rounds.join(loop.turn("next"), has_had_turn=False)
    with pytest.raises(ZeroDivisionError):
        loop.iterate()
    assert loop.iterate() == ["next"]


async def test_http2_keeps_input_for_the_next_round() -> None:
    """Reading pauses meanwhile, and the request is answered."""
    rounds = Rounds()
    under_test = await Wire(echo, rounds=rounds).begun()
    rounds.work_left = SPENT
    under_test.feed(under_test.head(1))
    assert not under_test.transport.reads
    await under_test.settle()
    assert under_test.is_over(1)
    assert under_test.transport.reads


async def test_many_http2_connections_do_not_add_up() -> None:
    """32 clients send 500 PING each at once: the first iteration handles a round's work, not all of it."""
    rounds = Rounds()
    wires = [await Wire(echo, rounds=rounds).begun() for _ in range(32)]
    rounds.work_left = WORK_PER_ROUND
    ping = bytes.fromhex("000008060000000000") + bytes(8)
    for each in wires:
        each.feed(ping * 500)
    answered = sum(len(each.transport.written) for each in wires) // len(ping)
    assert answered < 3 * WORK_PER_ROUND / 2
    for each in wires:
        await each.settle()
        assert sum(frame.type == 6 for frame in each.frames) == 500


async def test_http1_keeps_input_for_the_next_round() -> None:
    """Also if the client closes its side before that round."""
    rounds = Rounds()
    connection = Http1Connection(echo, lambda _: None, rounds=rounds)
    transport = FakeTransport(connection)
    connection.connection_made(transport)
    rounds.work_left = SPENT
    connection.data_received(b"GET / HTTP/1.1\r\n")
    connection.data_received(b"host: here\r\n\r\n")  # as TLS does, which does not pause at once
    assert connection.eof_received()
    assert not transport.reads
    await asyncio.sleep(0)
    while not transport.closed:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0)
    assert transport.written.startswith(b"HTTP/1.1 200")


async def test_protocol_detection_waits_for_the_next_round() -> None:
    """A connection is expensive to make: its first bytes, and their end, wait too."""
    rounds = Rounds()
    made: list[_Recorder] = []

    def make() -> _Recorder:
        made.append(_Recorder())
        return made[-1]

    detector = ProtocolDetector(make, make, rounds=rounds)
    transport = _SwitchedTransport(detector)
    detector.connection_made(transport)
    rounds.work_left = SPENT
    detector.data_received(PREFACE)
    detector.data_received(b"rest")
    assert detector.eof_received()
    assert made == []
    await asyncio.sleep(0)
    assert [each.received for each in made] == [b"rest"]
    assert transport.closed


class _Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


class _SwitchedTransport(FakeTransport):
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol
