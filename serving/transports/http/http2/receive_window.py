"""How much a client may still send, on one stream or on its connection: RFC 9113, section 5.2."""

from serving.transports.http.http2 import frames
from serving.transports.http.http2.output import Output


class ReceiveWindow:
    """Counts what a client may send, and lets it send more as its bytes are consumed."""

    __slots__ = ("_batch_bytes", "_consumed_bytes", "_left_bytes", "_output", "_stream")

    def __init__(self, output: Output, stream: int, size_bytes: int) -> None:
        """Open a window.

        Args:
            output: for WINDOW_UPDATE.
            stream: 0 is the connection.
            size_bytes: what the client may send to begin with.
        """
        self._output = output
        self._stream = stream
        self._left_bytes = size_bytes
        self._batch_bytes = size_bytes // 2  # one WINDOW_UPDATE for so many bytes
        self._consumed_bytes = 0  # since the last WINDOW_UPDATE

    def receive(self, size: int) -> bool:
        """Count bytes that came. Returns whether the client was allowed to send them."""
        left_bytes = self._left_bytes = self._left_bytes - size
        if left_bytes <= self._consumed_bytes:
            self._update()
        return left_bytes >= 0

    def consume(self, size: int) -> None:
        """Count bytes that are held no longer: the client may send as many again."""
        consumed_bytes = self._consumed_bytes = self._consumed_bytes + size
        # A window that is nearly used up grows in small steps: streams that wait may hold the rest of it.
        if consumed_bytes >= self._batch_bytes or consumed_bytes >= self._left_bytes:
            self._update()

    def _update(self) -> None:
        if self._consumed_bytes:
            self._left_bytes += self._consumed_bytes
            self._output.write(frames.window_update(self._stream, self._consumed_bytes))
            self._consumed_bytes = 0
