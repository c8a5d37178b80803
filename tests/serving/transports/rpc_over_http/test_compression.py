"""Compression of messages: limits in bytes and in ratio, steps, threads."""

import asyncio
import gzip
import random
import threading
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rpc.handlers import Failure
from serving.rpc.status import Code
from serving.transports.http.asgi import OverBudget
from serving.transports.rpc_over_http.compression import MAX_RATIO
from serving.transports.rpc_over_http.compression import decompress as decompress_in_turns
from serving.transports.rpc_over_http.compression import framed as framed_in_turns
from serving.transports.rpc_over_http.grpc_framing import PREFIX
from serving.turns import Turns
from tests.serving.counting_turns import CountingTurns

MIB = 2**20
LIMIT = 1000
_HELLO = gzip.compress(b"hello", mtime=0)  # the names of tests must not depend on the time
SQUEEZE: dict[bytes, Callable[[bytes], bytes]] = {b"gzip": gzip.compress, b"deflate": zlib.compress}


def _free(_size: int) -> None:
    """A budget without end."""


async def decompress(
    message: bytes, encoding: bytes, max_bytes: int, charge: Callable[[int], None], turns: Turns | None = None
) -> bytes:
    """Decompress with all turns for this message."""
    return await decompress_in_turns(message, encoding, max_bytes, charge, turns or Turns())


async def framed(message: bytes, *, compressed: bool, turns: Turns | None = None) -> bytes:
    """Frame with all turns for this message."""
    return await framed_in_turns(message, turns or Turns(), compressed=compressed)


def _noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)  # noqa: S311 - any bytes that do not compress


@pytest.mark.parametrize("encoding", SQUEEZE)
@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        _noise(2**16),
        bytes(2**16),
        bytes(2**16 + 1),
        _noise(3 * MIB),
        _noise(2**16) * 40,
        bytes(MIB),
    ],
    ids=[
        "empty",
        "short",
        "noise",
        "zeros",
        "more zeros",
        "long noise",
        "repeated noise",
        "a megabyte of zeros",
    ],
)
async def test_any_message_is_decompressed(encoding: bytes, message: bytes) -> None:
    """In one step or many, and every byte of it is charged."""
    charged: list[int] = []
    squeezed = SQUEEZE[encoding](message)
    assert await decompress(squeezed, encoding, 4 * MIB, charged.append) == message
    assert sum(charged) == len(message)
    assert max(charged) <= MIB


@pytest.mark.parametrize("encoding", SQUEEZE)
async def test_the_limit_in_bytes_is_exact(encoding: bytes) -> None:
    """The error has the limit."""
    assert await decompress(SQUEEZE[encoding](bytes(LIMIT)), encoding, LIMIT, _free) == bytes(LIMIT)
    with pytest.raises(Failure, match=f"a message has more than {LIMIT} bytes when decompressed"):
        await decompress(SQUEEZE[encoding](bytes(LIMIT + 1)), encoding, LIMIT, _free)


async def test_a_bomb_ends_soon_after_its_first_megabyte() -> None:
    """However long it would become. The message says what to do."""
    charged: list[int] = []
    bomb = gzip.compress(bytes(40 * MIB), 6)
    with pytest.raises(
        Failure, match=rf"limit of {MAX_RATIO} times .*: send it without compression"
    ) as caught:
        await decompress(bomb, b"gzip", 2**31, charged.append)
    assert caught.value.status.code is Code.RESOURCE_EXHAUSTED
    assert sum(charged) <= MAX_RATIO * len(bomb)


async def test_a_small_message_may_have_any_ratio() -> None:
    """Such as blank images of a warm-up."""
    blank = gzip.compress(bytes(MIB))
    assert 900 * len(blank) < MIB
    assert len(await decompress(blank, b"gzip", 64 * MIB, _free)) == MIB


async def test_a_full_budget_ends_the_decompression() -> None:
    """After the first step that does not fit."""
    sizes: list[int] = []

    def charge(size: int) -> None:
        sizes.append(size)
        if sum(sizes) > 2 * MIB:
            raise OverBudget("full")

    with pytest.raises(Failure, match=r"^full$") as caught:
        await decompress(zlib.compress(_noise(2**16) * 100, 1), b"deflate", 100 * MIB, charge)
    assert caught.value.status.code is Code.RESOURCE_EXHAUSTED
    assert sum(sizes) <= 3 * MIB


async def test_a_long_message_leaves_the_event_loop_free() -> None:
    """It is decompressed and compressed in threads; a short one is not."""
    threads: set[int] = set()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    noise = _noise(2**16) * 64
    squeezed = gzip.compress(noise)
    await decompress(squeezed, b"gzip", 64 * MIB, lambda _size: threads.add(threading.get_ident()))
    assert turns >= 4  # one for each step at least
    turns = 0
    await framed(noise, compressed=True)
    assert turns > 0
    counting.cancel()
    assert threads == {threading.get_ident()}  # charging is not thread-safe


async def test_many_long_messages_share_one_thread() -> None:
    """Each thread keeps up to 16 MiB of what it allocated, and all of them could take every core."""
    noise = _noise(2**16) * 64
    squeezed = gzip.compress(noise)
    before = {thread.ident for thread in threading.enumerate()}
    await asyncio.gather(
        *[decompress(squeezed, b"gzip", 64 * MIB, _free) for _ in range(8)],
        *[framed(noise, compressed=True) for _ in range(8)],
    )
    assert len({thread.ident for thread in threading.enumerate()} - before) <= 1


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", "ends inside"),
        (b"no gzip", "cannot decompress"),
        (_HELLO[:-9], "ends inside"),
        (gzip.compress(_noise(2**18), mtime=0)[:-9], "ends inside"),
        (_HELLO + b"more", "bytes follow"),
        (_HELLO * 2, "bytes follow"),
        (_HELLO + bytes(2**17), "bytes follow"),
    ],
)
async def test_invalid_data_is_an_error(message: bytes, text: str) -> None:
    """Truncated, corrupt, or with bytes after its end."""
    with pytest.raises(Failure, match=text) as caught:
        await decompress(message, b"gzip", 64 * MIB, _free)
    assert caught.value.status.code is Code.INTERNAL


@pytest.mark.parametrize("encoding", [b"identity", b"br", b"\xff"])
async def test_a_compressed_message_needs_an_encoding(encoding: bytes) -> None:
    """Whether it is missing or unknown."""
    with pytest.raises(Failure, match=r"its encoding is '.+': use gzip or deflate") as caught:
        await decompress(b"abc", encoding, LIMIT, _free)
    assert caught.value.status.code is Code.INTERNAL


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 79), st.binary(max_size=3))
async def test_random_changes_raise_failures_only(message: bytes, at: int, change: bytes) -> None:
    """No result is over the limit."""
    squeezed = gzip.compress(message)
    try:
        result = await decompress(squeezed[:at] + change + squeezed[at + len(change) :], b"gzip", 70, _free)
    except Failure:
        return
    assert len(result) <= 70


async def test_answers_are_framed() -> None:
    """Compressed or not, long or short."""
    for size in (0, 5, 2**17):
        flag, length = PREFIX.unpack_from(plain := await framed(bytes(size), compressed=False))
        assert (flag, length, plain[5:]) == (0, size, bytes(size))
        flag, length = PREFIX.unpack_from(squeezed := await framed(bytes(size), compressed=True))
        assert (flag, length, gzip.decompress(squeezed[5:])) == (1, len(squeezed) - 5, bytes(size))


async def test_work_on_the_event_loop_has_its_turns() -> None:
    """Many small compressed messages add up: one takes up to 0.3 ms to read and 0.7 ms to answer."""
    turns = CountingTurns()
    await decompress(gzip.compress(bytes(2**16)), b"gzip", MIB, _free, turns)
    await framed(bytes(2**16), compressed=True, turns=turns)
    await framed(bytes(2**16), compressed=False, turns=turns)
    await framed(bytes(2**17), compressed=True, turns=turns)
    assert turns.costs_us == [200, 675]
