"""Conversations in HTTP/2 frames (RFC 9113): valid ones, and changes of frames and header blocks."""

from collections.abc import Iterator
from random import Random

import hpack

from serving.transports.http.http2.frames import ErrorCode, frame
from tests.fuzz.echo import STREAM, UNARY
from tests.fuzz.mutations import blob, mutate, number

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 0x20

PING_OF_CHECK = frame(PING, 0, 0, b"lastping")
PONG = frame(PING, ACK, 0, b"lastping")

_Frame = tuple[int, int, int, bytes]  # kind, flags, stream, payload

_PSEUDO = [(":method", "POST"), (":scheme", "http"), (":authority", "here")]
_HEADS: list[list[tuple[str, str]]] = [
    *([*_PSEUDO, (":path", path), ("te", "trailers")] for path in ("/echo", "/answer", "/parts")),
    [*_PSEUDO, (":path", UNARY), ("content-type", "application/grpc"), ("te", "trailers")],
    [*_PSEUDO, (":path", STREAM), ("content-type", "application/grpc"), ("grpc-timeout", "5S")],
    [*_PSEUDO, (":path", UNARY), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")],
    [*_PSEUDO, (":path", "/nothing"), ("content-type", "application/grpc"), ("x-bin", "AAAA")],
    [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("content-length", "5"), ("a", "b" * 90)],
]
# Blocks that change no table, so that they may come in any order. Others begin with an entry for the table.
_BLOCKS = [hpack.Encoder().encode([(*pair, True) for pair in head]) for head in _HEADS]
_INDEXING = [b"\x40\x01%b\x01%b" % (letter, letter) for letter in (b"a", b"b")]
_LATER = [
    b"\xbe", b"\xbf", b"\x20", b"\x3f\xe1\x1f", b"\x82\x86\x84", b"\x0f\x0d\x014",
    b"\x40\x01a\x7f\x81\x1e" + b"x" * 3968,
    b"\x40\x01a\x01b", b"\0\x01c\x01d",
]  # fmt: skip
_MESSAGES = [
    b"",
    b"\0\0\0\0\5hello",
    b"\0\0\0\0\0",
    b"\0\0\0\0\2hi\0\0\0\0\1x",
    b"\0\0\0\0\xffhalf",
    b"hello",
]


def make_http2(random: Random) -> bytes:
    """Return frames: a conversation with its SETTINGS first, of a client that is odd or broken."""
    is_broken = random.random() < 0.6
    frames: list[_Frame] = [(SETTINGS, 0, 0, b"")]
    stream = 1
    for _ in range(random.randint(1, 4)):
        frames += _request(random, stream, is_broken=is_broken)
        stream += random.choice((2, 2, 2, 4))
    for _ in range(random.choice((0, 1, 2, 3, 5))):
        place = random.randint(1, len(frames))
        frames[place:place] = [_odd_frame(random)] * random.choice((1, 1, 1, 1, 1, 2, 40))
    data = b"".join(frame(*each) for each in frames)
    if not is_broken:
        return data
    for _ in range(random.choice((0, 1, 1, 2))):
        _change(random, frames)
    place = random.randint(0, len(frames))
    frames[place:place] = [_any_frame(random)] * random.choice((0, 1, 1, 30))
    data = b"".join(frame(*each) for each in frames)
    return mutate(random, data, most=2) if random.random() < 0.3 else data


def make_block(random: Random, *, is_broken: bool) -> bytes:
    """Return a header block."""
    block = random.choice(_BLOCKS)
    choice = random.random()
    if choice < 0.3:
        return block
    if choice < 0.5 or not is_broken:
        return block + random.choice(_INDEXING) * random.choice((1, 1, 1, 3, 30))
    if choice < 0.75:
        return block + b"".join(random.choice(_LATER) for _ in range(random.choice((1, 2, 3, 20))))
    return mutate(random, block, most=3)


def _request(random: Random, stream: int, *, is_broken: bool) -> list[_Frame]:
    block = make_block(random, is_broken=is_broken and random.random() < 0.2)
    bodies = [random.choice(_MESSAGES) for _ in range(random.randint(0, 3))]
    frames: list[_Frame]
    if random.random() < 0.2:
        at = random.randint(0, len(block))
        frames = [(HEADERS, 0, stream, block[:at]), (CONTINUATION, END_HEADERS, stream, block[at:])]
    else:
        frames = [(HEADERS, END_HEADERS, stream, block)]
    frames += [_padded(random, (DATA, 0, stream, body)) for body in bodies]
    kind, flags, number_of_last, payload = frames[-1]
    choice = random.random()
    if choice < 0.7:
        if kind != CONTINUATION:
            frames[-1] = (kind, flags | END_STREAM, number_of_last, payload)
    elif choice < 0.8:
        frames.append((HEADERS, END_HEADERS | END_STREAM, stream, random.choice(_INDEXING)))  # trailers
    elif choice < 0.9:
        frames.append((RESET, 0, stream, ErrorCode.CANCEL.to_bytes(4, "big")))
    return frames


def _odd_frame(random: Random) -> _Frame:
    """Return a frame that a client may send at any time but inside a header block."""
    kind = random.choice((PING, PING, SETTINGS, SETTINGS, PRIORITY, WINDOW, 99))
    if kind == PING:
        return PING, random.choice((0, ACK)), 0, random.randbytes(8)
    if kind == SETTINGS:
        window = random.choice((0, 1, 16, 65_535, 2**20)).to_bytes(4, "big")
        pairs = random.choice((b"", b"\0\4" + window, b"\0\1" + window, b"\0\3" + window + b"\0\4" + window))
        return SETTINGS, 0, 0, pairs
    if kind == PRIORITY:
        return PRIORITY, 0, 2**31 - 1, bytes(5)
    if kind == WINDOW:
        return WINDOW, 0, 0, random.choice((1, 100, 65_535)).to_bytes(4, "big")
    return kind, random.randrange(256), random.choice((0, 1, 9)), blob(random)


def _padded(random: Random, plain: _Frame) -> _Frame:
    kind, flags, stream, payload = plain
    if random.random() < 0.9:
        return plain
    length = random.randint(0, 255)
    return kind, flags | PADDED, stream, bytes([length]) + payload + bytes(length)


def _any_frame(random: Random) -> _Frame:
    kind = random.choice((*range(10), WINDOW, WINDOW, SETTINGS, SETTINGS, RESET, 99))
    stream = random.choice((0, 0, 0, 1, 1, 2, 3, 5, 2**31 - 1))
    flags = random.choice((0, 0, ACK, END_HEADERS, END_HEADERS | END_STREAM, 0xFF))
    if random.random() < 0.2:
        return kind, flags, stream, blob(random)
    if kind == SETTINGS:
        pairs = [(random.choice((1, 2, 3, 4, 4, 4, 5, 6, 99)), number(random) % 2**32) for _ in range(3)]
        return kind, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs)
    if kind == WINDOW:
        return kind, 0, stream, random.choice((number(random) % 2**31, 1, 65_535)).to_bytes(4, "big")
    if kind in (HEADERS, PUSH, CONTINUATION):
        return kind, flags, stream, make_block(random, is_broken=True)
    sizes = {PRIORITY: 5, RESET: 4, PING: 8, GOAWAY: 8}
    return kind, flags, stream, random.randbytes(sizes.get(kind, random.randint(0, 30)))


def _change(random: Random, frames: list[_Frame]) -> None:
    if not frames:
        return
    place = random.randrange(len(frames))
    kind, flags, stream, payload = frames[place]
    choice = random.randrange(7)
    if choice == 0:
        del frames[place]
    elif choice == 1:
        frames[place:place] = [frames[place]] * random.choice((1, 1, 2, 30))
    elif choice == 2:
        frames[place] = (kind, flags ^ (1 << random.randrange(8)), stream, payload)
    elif choice == 3:
        frames[place] = (kind, flags, random.choice((0, 1, 2, 3, 4, 5, 7, 2**31 - 1)), payload)
    elif choice == 4:
        frames[place] = (kind, flags, stream, mutate(random, payload, most=2))
    elif choice == 5:
        frames[place] = (random.randrange(11), flags, stream, payload)
    else:
        other = random.randrange(len(frames))
        frames[place], frames[other] = frames[other], frames[place]


def split_frames(data: bytes) -> Iterator[_Frame]:
    """Yield the frames of an answer.

    Raises:
        AssertionError: the last frame is cut off.
    """
    at = 0
    while at < len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        assert end <= len(data), f"the last frame is cut off at byte {at} of {len(data)}"
        yield data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end]
        at = end


def ends_between_frames(data: bytes) -> bool:
    """Whether the next byte begins a frame, and no header block is open."""
    at, in_block = 0, False
    while at + 9 <= len(data):
        kind, flags = data[at + 3], data[at + 4]
        if kind in (HEADERS, CONTINUATION):
            in_block = not flags & END_HEADERS
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return at == len(data) and not in_block
