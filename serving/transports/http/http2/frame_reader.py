"""Bytes of a client -> whole frames: joins header blocks, and checks the order of frames. Does no I/O."""

from collections.abc import Iterator

from serving.transports.http.http2 import frames
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode

# A larger block ends the connection: decoding 64 KiB takes up to 15 ms. Proxies in front of us pass on less
# (Envoy 60 KiB by default), so that no user of theirs can end the connection of the others.
MAX_BLOCK_BYTES = 2**16
_MAX_CONTINUATIONS = 16
_FORM = frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY  # flags of HEADERS


class FrameReader:
    """Divides the bytes of one connection into frames."""

    def __init__(self, max_block_bytes: int = MAX_BLOCK_BYTES) -> None:
        self._max_block_bytes = max_block_bytes
        self._unread = b""
        self.buffered_bytes = 0  # of incomplete frames and header blocks, and of what was not read
        self._unread_frames = 0  # that were begun and not complete at the end of a `read`
        self._expected: int | None = frames.SETTINGS  # the only type allowed next
        self._block: list[bytes] = []  # the header block that the next frame continues
        self._block_stream = 0
        self._block_flags = 0

    @property
    def unfinished_block(self) -> tuple[int, int] | None:
        """What is missing: the first SETTINGS, or the rest of the header block of a stream; else None."""
        return None if self._expected is None else (self._expected, self._block_stream)

    @property
    def unfinished_frame(self) -> int | None:
        """A number for the frame that is incomplete; else None."""
        return self._unread_frames if self._unread else None

    def keep(self, data: bytes) -> None:
        """Keep bytes for the next `read`."""
        self._unread += data
        self.buffered_bytes += len(data)

    def forget(self) -> None:
        """Forget what was kept: nothing will be read."""
        self._unread = b""
        self._block.clear()
        self.buffered_bytes = 0

    def read(self, data: bytes = b"") -> Iterator[tuple[int, int, int, bytes]]:
        """Yield (type, stream, flags, payload) of each complete frame. The next call continues there.

        HEADERS contain the whole header block, without padding and priority; CONTINUATION is never yielded.

        Raises:
            ConnectionBroken: a frame is too long, or its type is not allowed here.
        """
        is_continued = self._unread
        if is_continued:
            data = is_continued + data
        offset, end = 0, len(data)
        size, unpack = frames.HEAD.size, frames.HEAD.unpack_from
        try:
            while end - offset >= size:
                high, length, kind, flags, stream = unpack(data, offset)  # 8 and 16 bits of its length
                if high or length > frames.MAX_FRAME_BYTES:
                    raise ConnectionBroken(
                        ErrorCode.FRAME_SIZE_ERROR,
                        f"a frame has {high << 16 | length} bytes, limit is {frames.MAX_FRAME_BYTES}",
                    )
                start = offset + size
                if start + length > end:
                    break
                offset = start + length
                payload = data[start:offset]
                stream &= frames.STREAM_MASK
                if self._expected is not None:
                    self._check_expected(kind, flags)
                if kind == frames.CONTINUATION or (
                    kind == frames.HEADERS and flags & _FORM != frames.END_HEADERS  # not just a whole block
                ):
                    flags, payload = self._join(kind, stream, flags, payload)
                    if not flags & frames.END_HEADERS:
                        continue
                    kind = frames.HEADERS
                yield kind, stream, flags, payload
        finally:  # the end of the data, or the caller reads no more frames
            if offset < end or is_continued or self._block or self.buffered_bytes:
                self._unread = data[offset:]
                self.buffered_bytes = end - offset + (sum(map(len, self._block)) if self._block else 0)
                if self._unread and (offset or not is_continued):
                    self._unread_frames += 1

    def _check_expected(self, kind: int, flags: int) -> None:
        if kind != self._expected:
            raise ConnectionBroken(
                ErrorCode.PROTOCOL_ERROR, f"a frame has type {kind}, expected {self._expected}"
            )
        if kind == frames.SETTINGS:
            if flags & frames.ACK:
                raise ConnectionBroken(
                    ErrorCode.PROTOCOL_ERROR, "the first SETTINGS frame is an acknowledgement"
                )
            self._expected = None

    def _join(self, kind: int, stream: int, flags: int, payload: bytes) -> tuple[int, bytes]:
        """Return the flags and the whole block after END_HEADERS; before, the flags without it."""
        if kind == frames.CONTINUATION:
            return self._continue_block(stream, flags, payload)
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = frames.unpadded(payload, flags)
        if not flags & frames.END_HEADERS:
            self._block, self._block_stream, self._block_flags = [payload], stream, flags
            self._expected = frames.CONTINUATION
        return flags, payload

    def _continue_block(self, stream: int, flags: int, part: bytes) -> tuple[int, bytes]:
        if not self._block or stream != self._block_stream:
            raise ConnectionBroken(ErrorCode.PROTOCOL_ERROR, "CONTINUATION does not follow HEADERS")
        self._block.append(part)
        if len(self._block) > _MAX_CONTINUATIONS or sum(map(len, self._block)) > self._max_block_bytes:
            raise ConnectionBroken(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"a header block is over {self._max_block_bytes} bytes or {_MAX_CONTINUATIONS} frames",
            )
        if not flags & frames.END_HEADERS:
            return flags, b""
        block, self._block, self._expected = b"".join(self._block), [], None
        return self._block_flags | frames.END_HEADERS, block
