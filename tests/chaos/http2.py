"""Bytes of HTTP/2 for attackers, prepared in advance, and a client that respects windows and nothing else."""

import itertools
import select
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from tests.chaos.attack import Target

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, END_HEADERS, HAS_PRIORITY = 1, 4, 0x20

FRAME_HEAD_BYTES = 9
MAX_FRAME_BYTES = 2**14
MAX_WINDOW_BYTES = 2**31 - 1
_DEFAULT_WINDOW_BYTES = 2**16 - 1
_MOST_AT_A_TIME_BYTES = 2**18  # of one body, before the next call has its turn
_LAST_STREAM = 2**31 - 1
_INITIAL_WINDOW_SIZE = 4

CLASSIFY = b"/lenserve.v1.Classifier/Classify"
CLASSIFY_STREAM = b"/lenserve.v1.Classifier/ClassifyStream"
INFER = b"/inference.GRPCInferenceService/ModelInfer"
REFLECTION = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SERVER_METADATA = b"/inference.GRPCInferenceService/ServerMetadata"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def window_setting(window_bytes: int) -> bytes:
    """A SETTINGS frame: how many bytes of each answer the server may send at first."""
    return frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window_bytes))


def window_update(stream: int, more_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, more_bytes.to_bytes(4, "big"))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OPENING = PREFACE + frame(SETTINGS, 0, 0)


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """An integer of HPACK: RFC 7541, section 5.1."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([first | value])
    rest, encoded = value - limit, bytearray([first | limit])
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*encoded, rest])


def literal(name: bytes, value: bytes, *, first: int = 0) -> bytes:
    """A field that is sent as text; `first` is 0x40 to add it to the server's table."""
    return bytes([first]) + integer(len(name), 7) + name + integer(len(value), 7) + value


def call_block(target: Target, path: bytes = CLASSIFY, *fields: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call. It adds nothing to the server's table."""
    usual = [
        (b":path", path),
        (b":authority", b"chaos"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    if target.token:
        usual.append((b"authorization", b"Bearer " + target.token.encode()))
    return b"\x83\x86" + b"".join(literal(*pair) for pair in (*usual, *fields))  # POST, http


def call_head(
    target: Target, path: bytes = CLASSIFY, *fields: tuple[bytes, bytes], ends: bool = False
) -> bytes:
    """The HEADERS frame of a call on stream 1."""
    return frame(HEADERS, END_HEADERS | END_STREAM * ends, 1, call_block(target, path, *fields))


def framed(message: bytes, *, compressed: bool = False, length: int | None = None) -> bytes:
    """A message as gRPC frames it; `length` is what the prefix claims."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


def on_streams(frames: bytes, streams: Sequence[int]) -> bytes:
    """The frames of stream 1, again for each of the streams."""
    copies = np.tile(np.frombuffer(frames, np.uint8), (len(streams), 1))  # (streams, bytes)
    numbers = np.array(streams, ">u4")[:, None].view(np.uint8)  # (streams, 4)
    offset = 0
    while offset < len(frames):
        if any(frames[offset + 5 : offset + FRAME_HEAD_BYTES]):
            copies[:, offset + 5 : offset + FRAME_HEAD_BYTES] = numbers
        offset += FRAME_HEAD_BYTES + int.from_bytes(frames[offset : offset + 3], "big")
    return copies.tobytes()


def new_streams(
    frames: bytes, *, at_once: int = 500, first: int = 1, opening: bytes = OPENING
) -> Iterator[bytes]:
    """The frames of stream 1 on new streams for ever, from stream `first` on: `at_once` streams a chunk."""
    yield opening
    for stream in range(first, _LAST_STREAM - 2 * at_once, 2 * at_once):
        yield on_streams(frames, range(stream, stream + 2 * at_once, 2))


def again(frames: bytes, *, opening: bytes = OPENING, chunk_bytes: int = 2**16) -> Iterator[bytes]:
    """The same frames for ever."""
    yield opening
    yield from itertools.repeat(frames * max(1, chunk_bytes // len(frames)))


class Http2Client:
    """A blocking client that sends large bodies: it counts windows, and ignores everything else it reads.

    OSError ends the connection.
    """

    def __init__(self, target: Target, *, opening: bytes = OPENING) -> None:
        self.socket = target.connect()
        self._target = target
        self._received = b""
        self._has_settings = False  # of the server
        self._next_stream = 1
        self._initial_bytes = _DEFAULT_WINDOW_BYTES
        self._connection_bytes = _DEFAULT_WINDOW_BYTES
        self._stream_bytes: dict[int, int] = {}  # windows of open streams
        self.send(opening)
        while not self._has_settings:
            self._receive()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)
        self._target.sent_bytes += len(data)

    def make_calls(self, head: bytes, body: bytes, *, at_once: int, end: bool = True) -> None:
        """Make the same call again and again, `at_once` at the same time, until the connection is closed.

        Args:
            head: HEADERS frame of stream 1.
            body: sent as far as the windows allow, to each call in turn.
            at_once: number of calls.
            end: whether a call ends after its body. If not, it stays open until the server ends it.
        """
        left: dict[int, memoryview] = {}  # of each call: the rest of its body
        while True:
            while len(self._stream_bytes) < at_once:
                left[self._open(head)] = memoryview(body)
            sent_bytes = 0
            for stream in list(self._stream_bytes):
                sent_bytes += (sent := self._send_some(stream, left[stream]))
                if sent and len(left[stream]) == sent and end:
                    self.send(frame(DATA, END_STREAM, stream))
                left[stream] = left[stream][sent:]
            self._receive(0 if sent_bytes else None)
            left = {stream: left[stream] for stream in self._stream_bytes}

    def _open(self, head: bytes) -> int:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._stream_bytes[stream] = self._initial_bytes
        self.send(on_streams(head, [stream]))
        return stream

    def _send_some(self, stream: int, body: memoryview) -> int:
        """Send as much of a body as the windows have room for; return the number of bytes."""
        room = min(self._connection_bytes, self._stream_bytes[stream], len(body), _MOST_AT_A_TIME_BYTES)
        for start in range(0, room, MAX_FRAME_BYTES):
            self.send(frame(DATA, 0, stream, bytes(body[start : min(start + MAX_FRAME_BYTES, room)])))
        self._connection_bytes -= room
        self._stream_bytes[stream] -= room
        return room

    def _receive(self, timeout_s: float | None = None) -> None:
        """Take what has arrived within a time; None waits for something."""
        if not select.select([self.socket], [], [], timeout_s)[0]:
            return
        data = self.socket.recv(2**16)
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        self._received += data
        while len(self._received) >= FRAME_HEAD_BYTES:
            end = FRAME_HEAD_BYTES + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                return
            kind, flags, stream = struct.unpack(">BBI", self._received[3:FRAME_HEAD_BYTES])
            self._take(kind, flags, stream, self._received[FRAME_HEAD_BYTES:end])
            self._received = self._received[end:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more_bytes = int.from_bytes(payload, "big")
            if stream == 0:
                self._connection_bytes += more_bytes
            elif stream in self._stream_bytes:
                self._stream_bytes[stream] += more_bytes
        elif kind == SETTINGS and not flags:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _INITIAL_WINDOW_SIZE:
                    self._initial_bytes = value
            self._has_settings = True
            self.send(frame(SETTINGS, 1, 0))
        elif kind == RST_STREAM or (kind in {DATA, HEADERS} and flags & END_STREAM):
            self._stream_bytes.pop(stream, None)
