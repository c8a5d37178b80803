"""A buffer for bytes that arrive in pieces."""

_SMALL_BYTES = 512  # the object for a smaller piece would be larger than its data


class ByteBuffer:
    """A buffer of bytes. Its memory grows with their number, not with the number of pieces."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes
        self._pieces: list[bytes | bytearray] = []

    def append(self, piece: bytes) -> None:
        """Add a piece."""
        pieces = self._pieces
        self.size += len(piece)
        if not pieces or len(piece) >= _SMALL_BYTES:
            pieces.append(piece)
        elif isinstance(last := pieces[-1], bytearray):
            last += piece
        else:
            pieces.append(bytearray(piece))

    def take(self) -> bytes:
        """Return all bytes and empty the buffer."""
        pieces = self._pieces
        content = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        return content

    def join(self) -> None:
        """Make one piece of all: then `take` copies nothing.

        May be called in a thread while nothing else uses the buffer. From 1 MiB on, bytes.join leaves the
        interpreter's lock to others, unless a piece can change.
        """
        pieces = self._pieces
        self._pieces = [b"".join([bytes(each) for each in pieces])]

    def clear(self) -> int:
        """Empty the buffer; return how many bytes it held. Unlike `take`, this copies nothing."""
        size = self.size
        self._pieces.clear()
        self.size = 0
        return size
