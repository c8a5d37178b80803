"""Bytes that come in pieces."""

_SMALL_BYTES = 512  # an object for each piece would be larger than what is in it


class Chunks:
    """What came and was not taken yet. A class because memory grows with the bytes, not with the pieces."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes
        self._chunks: list[bytes | bytearray] = []

    def append(self, chunk: bytes) -> None:
        """Add a piece."""
        chunks = self._chunks
        self.size += len(chunk)
        if not chunks or len(chunk) >= _SMALL_BYTES:
            chunks.append(chunk)
        elif isinstance(last := chunks[-1], bytearray):
            last += chunk
        else:
            chunks.append(bytearray(chunk))

    def take(self) -> bytes:
        """All of it; nothing is left."""
        chunks = self._chunks
        taken = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        return taken
