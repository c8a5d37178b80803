"""A connection that sends much, or much that needs work, leaves time for others, or is closed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from serving.transports.http.http2 import frames, rate_limits
from serving.transports.http.http2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    SETTINGS,
    ConnectionBroken,
    ErrorCode,
    Setting,
    frame,
)
from serving.transports.http.http2.rate_limits import RATES, Rate, RateLimits
from serving.transports.http.rounds import Rounds
from tests.serving.transports.http.http2.applications import (
    CONTENT_LENGTH_4,
    HEAD,
    START,
    answers,
    body_event,
    echo,
)
from tests.serving.transports.http.http2.sockets import connect, open_server
from tests.serving.transports.http.http2.wire import Wire

PRIORITY_UPDATE = 0x10  # RFC 9218
CALM = ErrorCode.ENHANCE_YOUR_CALM


def _heavy_heads(count: int, first: int = 1) -> bytes:
    """HEADERS of 900 references of one byte each; each block differs, so that none is cached."""
    heads = (
        frame(HEADERS, 5, number, HEAD + b"\x00\x01n\x04%04d" % (number % 10_000) + b"\x90" * 900)
        for number in range(first, first + 2 * count, 2)
    )
    return b"".join(heads)


# Turns.


@pytest.mark.parametrize(
    "sent",
    [frame(PING, 0, 0, bytes(8)) * 900, _heavy_heads(200)],
    ids=["PING", "HEADERS"],
)
async def test_what_needs_more_than_a_turn_waits_and_reading_pauses(sent: bytes) -> None:
    """A turn of the event loop comes in between; then all of it is handled, and reading goes on."""
    under_test = await Wire(echo).begun()
    under_test.feed(sent, under_test.head(999))
    assert not under_test.transport.reads
    under_test.feed(under_test.head(1001))  # TLS delivers what it has decrypted
    assert not under_test.of(1001)
    await under_test.settle()
    assert under_test.transport.reads
    assert under_test.is_over(999)
    assert under_test.is_over(1001)


@pytest.mark.parametrize("stream", [0, 1], ids=["connection", "stream"])
async def test_waking_an_answer_for_each_byte_counts_as_work(stream: int) -> None:
    """A client that lets answers go on byte by byte leaves time for others."""
    under_test = await Wire(answers(START, body_event(bytes(2**17)))).begun()
    numbers = range(1, 600, 2)
    under_test.feed(*([] if stream else [frames.window_update(0, 2**20)]), *map(under_test.head, numbers))
    await under_test.settle()
    under_test.feed(*(frames.window_update(stream and number, 1) for number in numbers))
    assert not under_test.transport.reads
    await under_test.settle()
    under_test.transport.abort()
    await under_test.settle()


async def test_a_window_of_many_answers_that_grows_wakes_a_part_of_them_in_each_round() -> None:
    """One SETTINGS frame woke a thousand: 30 ms, again and again."""
    under_test = await Wire(answers(START, body_event(bytes(100)))).begun()
    under_test.feed(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    numbers = range(1, 1000, 2)
    under_test.feed(*map(under_test.head, numbers))
    await under_test.settle()
    under_test.feed(frames.settings({Setting.INITIAL_WINDOW_SIZE: 100}))
    async with asyncio.timeout(5):
        while len(under_test.transport.written) < 109:  # noqa: ASYNC110 - the first answer, without an event
            await asyncio.sleep(0)
    assert len(under_test.transport.written) < 109 * len(numbers) // 2
    for _ in range(10):
        await under_test.settle()
    assert all(map(under_test.is_over, numbers))


async def test_a_turn_that_takes_long_is_paid_for_by_the_next_ones() -> None:
    """A header block of 16 KiB takes some ms: other connections have several turns before the next block."""
    rounds = Rounds()
    heavy, light = await Wire(echo, rounds=rounds).begun(), await Wire(echo, rounds=rounds).begun()
    block = HEAD + b"\x00\x01a\x7f\x81\x7c" + b"\xff" * 16_000  # is_huffman is not set
    heavy.feed(*(frame(HEADERS, 5, number, block) for number in (1, 3)))
    turns = 0
    while not heavy.transport.reads:
        light.feed(light.head(2 * turns + 1))
        await asyncio.sleep(0)
        turns += 1
    await light.settle()
    assert turns >= 2 * len(block) // 4 // 1000
    assert light.is_over(1)


async def test_heads_that_are_skipped_count_as_work() -> None:
    """After GOAWAY, streams are no longer opened, but each head is still decoded for its table."""
    under_test = await Wire(echo).begun()
    under_test.feed(frame(HEADERS, 4, 1, HEAD))
    under_test.connection.close_when_idle()
    await under_test.settle()
    under_test.feed(frame(PING, 1, 0, b"goodbye!"))
    await under_test.settle()
    under_test.feed(_heavy_heads(5, first=3))
    assert not under_test.transport.reads
    under_test.transport.abort()
    await under_test.settle()


async def test_other_clients_are_served_while_one_sends_2_mb_of_references() -> None:
    """Half of the answers after 20 ms of CPU, almost all after 50; the attacker can read why it must go."""
    async with open_server(echo) as port, connect(port) as attacker, connect(port) as good:
        attacker.send(_heavy_heads(2200))
        waits_s = []
        for number in range(1, 60, 2):
            sent_s = time.process_time()
            good.send(frame(HEADERS, 5, number, HEAD))
            await good.end_of(number)
            waits_s.append(time.process_time() - sent_s)
        assert await attacker.goaway() == CALM
    waits_s.sort()
    assert waits_s[len(waits_s) // 2] < 0.02
    assert waits_s[-3] < 0.05


# Rates.

BURSTS = [replace(each, per_s=0) for each in RATES]  # so that a slow computer is not a patient client


def test_a_bucket_refills_with_time() -> None:
    """A burst, then so many per second; after a pause a burst again."""
    now_s = 0.0
    limits = RateLimits(lambda: now_s, [Rate("knocking", per_s=10, burst=5)])
    for _ in range(5):
        limits.take(0)
    with pytest.raises(ConnectionBroken, match="knocking: more than 10 per second after 5 at once") as caught:
        limits.take(0)
    assert caught.value.code is CALM
    now_s += 0.35
    for _ in range(2):
        limits.take(0)
    now_s += 3600
    for _ in range(5):
        limits.take(0)


FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda _: frame(PING, 0, 0, bytes(8)),
    "answers to no PING": lambda _: frame(PING, 1, 0, bytes(8)),
    "SETTINGS": lambda _: frame(SETTINGS, 0, 0),
    "acknowledged SETTINGS": lambda _: frame(SETTINGS, 1, 0),
    "SETTINGS with many parameters": lambda _: frame(SETTINGS, 0, 0, bytes(range(250)) * 60),
    "SETTINGS that change the window": lambda number: frame(SETTINGS, 0, 0, b"\0\4\0\0" + number.to_bytes(2)),
    "empty DATA": lambda _: frame(DATA, 0, 1),
    "DATA of padding": lambda _: frame(DATA, frames.PADDED, 1, b"\3\0\0\0"),
    "empty DATA on a stream that is closed": lambda _: frame(DATA, 0, 5),
    "WINDOW_UPDATE of the connection": lambda _: frames.window_update(0, 1),
    "WINDOW_UPDATE of a stream": lambda _: frames.window_update(1, 1),
    "WINDOW_UPDATE of a closed stream": lambda _: frames.window_update(5, 1),
    "PRIORITY": lambda number: frame(PRIORITY, 0, number, bytes(5)),
    "PRIORITY that is too short": lambda _: frame(PRIORITY, 0, 1),
    "PRIORITY_UPDATE": lambda _: frame(PRIORITY_UPDATE, 0, 0, b"\0\0\0\1u=1"),
    "unknown frames": lambda _: frame(99, 0, 1),
    "GOAWAY": lambda _: frame(GOAWAY, 0, 0, bytes(8)),
    "resets of a closed stream": lambda _: frames.reset(5, ErrorCode.CANCEL),
    "rapid resets": lambda number: frame(HEADERS, 5, number, HEAD) + frames.reset(number, ErrorCode.CANCEL),
    "malformed requests": lambda number: frame(HEADERS, 5, number, HEAD[1:]),
    "empty requests": lambda number: frame(HEADERS, 5, number),
    "requests with too many fields": lambda number: frame(HEADERS, 4, number, HEAD + b"\x90" * 101),
    "streams reset for WINDOW_UPDATE of 0": lambda number: (
        frame(HEADERS, 4, number, HEAD) + frame(8, 0, number, bytes(4))
    ),
    "streams reset for their length": lambda number: (
        frame(HEADERS, 4, number, HEAD + CONTENT_LENGTH_4) + frame(DATA, 0, number, b"12345")
    ),
    "streams reset for DATA after their end": lambda number: (
        frame(HEADERS, 5, number, HEAD) + frame(DATA, 0, number, b"1")
    ),
    "streams reset for their trailers": lambda number: (
        frame(HEADERS, 4, number, HEAD) + frame(HEADERS, 5, number, HEAD)
    ),
    "empty CONTINUATION": lambda number: (
        frame(HEADERS, 0, number, HEAD) + frame(CONTINUATION, 0, number) * 17
    ),
}


@pytest.mark.parametrize("make", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_answered_with_enhance_your_calm(make: Callable[[int], bytes]) -> None:
    """However it is sent, a client that goes on is disconnected, and reads all replies until then."""
    under_test = await Wire(echo, rates=BURSTS).begun()
    under_test.feed(under_test.head(1, ends=False), under_test.head(5))
    await under_test.settle()
    numbers = iter(range(7, 2**20, 2))
    for _ in range(60):
        under_test.feed(*(make(next(numbers)) for _ in range(1000)))
        await under_test.settle()
        if under_test.transport.closed:
            break
    assert [code for _, code in under_test.goaways] == [CALM]


async def test_more_streams_than_allowed_are_refused_until_the_client_goes_on_for_too_long() -> None:
    """It never looks at what it gets."""
    held = asyncio.Event()

    async def hold(*_: object) -> None:
        await held.wait()

    under_test = await Wire(hold, rates=BURSTS).begun()
    numbers = iter(range(1, 2**20, 2))
    for _ in range(20):
        under_test.feed(*(under_test.head(next(numbers)) for _ in range(1000)))
        await under_test.settle()
        if under_test.transport.closed:
            break
    assert [code for _, code in under_test.goaways] == [CALM]


async def test_rates_leave_room_for_what_real_clients_do() -> None:
    """A PING per answer (grpc-go), resets of 4,000 late calls, an update per DATA frame, some empty DATA."""
    under_test = await Wire(answers(START, body_event(b"12345")), rates=BURSTS).begun()
    for number in range(1, 4 * RATES[rate_limits.PINGS].burst, 2):
        under_test.feed(under_test.head(number), frame(PING, 0, 0, bytes(8)))
        under_test.feed(frames.window_update(0, 5))
        if number % 64 == 1:
            await under_test.settle()
    first = number + 2
    for number in range(first, first + 8000, 2):
        under_test.feed(under_test.head(number, ends=False), frame(DATA, 0, number))
        under_test.feed(frames.reset(number, ErrorCode.CANCEL))
    await under_test.settle()
    assert under_test.goaways == []
