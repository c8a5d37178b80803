"""Random changes of bytes and of JSON values. Equal random numbers give equal changes.

A mutator of our own instead of Hypothesis or Atheris: a run has an exact number of inputs, and each is made
again from its seed and index alone, without a database of examples or an instrumented build.
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

# Around the sizes where a length needs one more byte or bit.
INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    31,
    32,
    63,
    64,
    100,
    127,
    128,
    255,
    256,
    511,
    512,
    1023,
    1024,
    4095,
)
LARGE = (2**14, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**20, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
HUGE = (2**53, 2**63 - 1, 2**63, 2**64 - 1)

_Change = Callable[[Random, bytearray], None]


def number(random: Random) -> int:
    """Return an interesting number, at most 2^64 - 1."""
    choice = random.random()
    if choice < 0.5:
        return random.choice(INTERESTING)
    if choice < 0.8:
        return random.choice(LARGE) + random.choice((-1, 0, 0, 1))
    return random.choice(HUGE) if choice < 0.9 else random.getrandbits(random.choice((8, 16, 31, 32, 63)))


def blob(random: Random, most: int = 24) -> bytes:
    """Return random bytes, often equal ones or text."""
    length = random.randint(0, most)
    choice = random.random()
    if choice < 0.4:
        return random.randbytes(length)
    if choice < 0.7:
        return bytes([random.choice((0, 1, 0x20, 0x41, 0x7F, 0x80, 0xFF))]) * length
    return b"lenserve colours image \xc3\xa4"[:length]


def mutate(random: Random, data: bytes, *, most: int = 4) -> bytes:
    """Return the bytes after 1 to `most` changes."""
    changed = bytearray(data)
    for _ in range(random.randint(1, most)):
        random.choice(_CHANGES)(random, changed)
    return bytes(changed)


def cut(random: Random, data: bytes, pieces: int) -> list[bytes]:
    """Return the bytes in up to so many pieces."""
    cuts = sorted(random.randint(0, len(data)) for _ in range(random.randint(0, pieces - 1)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _part(random: Random, data: bytearray) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 1, 2, 4, 8, 32, 256)))


def _flip_bit(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(
            (0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256))
        )


def _set_number(random: Random, data: bytearray) -> None:
    size = random.choice((2, 3, 4, 8))
    if len(data) >= size:
        start = random.randint(0, len(data) - size)
        value = number(random) % 256**size
        data[start : start + size] = value.to_bytes(size, random.choice(("big", "little")))


def _insert(random: Random, data: bytearray) -> None:
    start = random.randint(0, len(data))
    data[start:start] = blob(random)


def _remove(random: Random, data: bytearray) -> None:
    start, end = _part(random, data)
    del data[start:end]


def _repeat(random: Random, data: bytearray) -> None:
    start, end = _part(random, data)
    data[end:end] = data[start:end] * random.choice((1, 1, 2, 3, 30))


def _move(random: Random, data: bytearray) -> None:
    start, end = _part(random, data)
    part = data[start:end]
    del data[start:end]
    to = random.randint(0, len(data))
    data[to:to] = part


def _truncate(random: Random, data: bytearray) -> None:
    del data[random.randint(0, len(data)) :]


_CHANGES: Sequence[_Change] = (
    _flip_bit, _flip_bit, _set_byte, _set_byte, _set_number, _set_number, _insert, _remove, _repeat,
    _move, _truncate,
)  # fmt: skip

# JSON.

_SCALARS: Sequence[Any] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, -(2**63) - 1, "", "0", "NaN",
    "Infinity", "x",
    "colours", "AAAA", "\x00", "\ud800", "🦊" * 9, "a" * 300, float("nan"), float("inf"), [], {}, [[]],
    [None], {"": {}},
)  # fmt: skip


def mutate_value(random: Random, value: Any, names: Sequence[str] = ()) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with one change somewhere in it; `names` are keys that may be added."""
    if random.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return _other(random, value, names)
    if isinstance(value, list):
        place = random.randrange(len(value))
        changed = mutate_value(random, value[place], names)
        return [*value[:place], *[changed] * random.choice((0, 1, 1, 1, 1, 2, 20)), *value[place + 1 :]]
    key = random.choice(list(value))
    rest = {name: each for name, each in value.items() if name != key}
    choice = random.random()
    if choice < 0.1:
        return rest
    if choice < 0.2:
        return {**rest, random.choice((*names, key + "x", key.upper(), "")): value[key]}
    return {**rest, key: mutate_value(random, value[key], names)}


def _other(random: Random, value: Any, names: Sequence[str]) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict) and random.random() < 0.5:
        return {**value, random.choice((*names, "x")): random.choice(_SCALARS)}
    if isinstance(value, str) and random.random() < 0.5:
        return mutate(random, value.encode(errors="replace"), most=2).decode("utf-8", "replace")
    if isinstance(value, int) and random.random() < 0.5:
        return random.choice((-1, 1)) * number(random)
    return random.choice(_SCALARS)


def mutate_json(random: Random, value: Any, names: Sequence[str] = ()) -> bytes:  # noqa: ANN401 - any JSON value
    """Return JSON text: of a changed value, of changed text, or nested deeply."""
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        value = mutate_value(random, value, names)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    choice = random.random()
    if choice < 0.3:
        return mutate(random, text, most=2)
    if choice < 0.32:
        depth = random.choice((10, 100, 1000, 5000))
        return random.choice((b"[", b'{"a":')) * depth + text
    return text
