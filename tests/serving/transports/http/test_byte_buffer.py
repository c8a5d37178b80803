"""Bytes in pieces: they come out in order, and memory grows with the bytes."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from serving.transports.http.byte_buffer import ByteBuffer


@given(st.lists(st.one_of(st.binary(max_size=3), st.binary(min_size=500, max_size=600)), max_size=30))
def test_all_bytes_are_returned_in_order(pieces: list[bytes]) -> None:
    """For pieces of any size; `take` empties the buffer."""
    chunks = ByteBuffer()
    for piece in pieces:
        chunks.append(piece)
    assert chunks.size == sum(map(len, pieces))
    taken = chunks.take()
    assert type(taken) is bytes
    assert (taken, chunks.size, chunks.take()) == (b"".join(pieces), 0, b"")


@given(st.lists(st.one_of(st.binary(max_size=3), st.binary(min_size=500, max_size=600)), max_size=30))
def test_joined_bytes_are_the_same(pieces: list[bytes]) -> None:
    """More can follow; a joined piece is taken without copying it again."""
    chunks = ByteBuffer()
    for piece in pieces:
        chunks.append(piece)
    chunks.join()
    joined = chunks.take()
    assert joined == b"".join(pieces)
    chunks.append(joined)
    chunks.join()
    chunks.append(b"more")
    assert (chunks.size, chunks.take()) == (len(joined) + 4, joined + b"more")


def test_many_small_pieces_take_little_memory() -> None:
    """A client that sends its body byte by byte does not fill memory with objects."""
    chunks = ByteBuffer()
    tracemalloc.start()
    try:
        for number in range(100_000):
            chunks.append(bytes([number % 256, 1]))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * chunks.size


def test_a_buffer_is_emptied_without_copying_it() -> None:
    """As for a refused request: 128 MiB of half messages would be joined first."""
    chunks = ByteBuffer()
    for _ in range(64):
        chunks.append(bytes(2**18))
    tracemalloc.start()
    try:
        assert chunks.clear() == 64 * 2**18
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**16
    assert (chunks.size, chunks.take()) == (0, b"")
