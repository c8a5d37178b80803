"""Limits what a client may send, on a stream or a connection: RFC 9113, section 5.2."""

from serving.transports.http.http2 import frames
from serving.transports.http.http2.output import Output


class ReceiveWindow:
    """Counts the bytes that a client may send, and allows more as bytes are consumed."""

    __slots__ = ("_batch_bytes", "_consumed_bytes", "_left_bytes", "_output", "_stream")

    def __init__(self, output: Output, stream: int, size_bytes: int) -> None:
        """Open a window.

        Args:
            output: sends WINDOW_UPDATE.
            stream: number of the stream; 0 is the connection.
            size_bytes: initial size.
        """
        self._output = output
        self._stream = stream
        self._left_bytes = size_bytes
        self._batch_bytes = size_bytes // 2  # consumed bytes per WINDOW_UPDATE
        self._consumed_bytes = 0  # consumed since the last WINDOW_UPDATE

    @property
    def is_used_up(self) -> bool:
        """Whether the client may send nothing."""
        return self._left_bytes <= 0

    def receive(self, size: int) -> bool:
        """Count received bytes; return whether the client was allowed to send them."""
        left_bytes = self._left_bytes = self._left_bytes - size
        if left_bytes <= self._consumed_bytes:
            self._update()
        return left_bytes >= 0

    def consume(self, size: int) -> None:
        """Count consumed bytes: the client may send that many more."""
        consumed_bytes = self._consumed_bytes = self._consumed_bytes + size
        # A nearly empty window grows in small steps: waiting streams may hold the rest of it.
        if consumed_bytes >= self._batch_bytes or consumed_bytes >= self._left_bytes:
            self._update()

    def _update(self) -> None:
        if self._consumed_bytes:
            self._left_bytes += self._consumed_bytes
            self._output.write(frames.window_update(self._stream, self._consumed_bytes))
            self._consumed_bytes = 0
