"""Sends as fast as a server takes it, on one connection or on several, and connects again if it is closed."""

import selectors
from collections.abc import Callable, Iterator
from contextlib import suppress

from tests.chaos.attack import Target

_BUFFER_BYTES = 2**18

Chunks = Callable[[], Iterator[bytes]]


def flood(target: Target, chunks: Chunks, *, connections: int = 1, reads: bool = True) -> None:
    """Send the chunks of an iterator on each connection; what the server sends is read and discarded.

    Args:
        target: the server.
        chunks: makes the iterator of a connection. At its end the connection is closed and opened again;
            after an empty chunk it stays open, and nothing more is sent.
        connections: number of connections at the same time.
        reads: False lets the server's answers fill its buffers.
    """
    with selectors.DefaultSelector() as selector:
        senders: set[_Sender] = set()
        while True:
            while len(senders) < connections:
                with suppress(OSError):
                    sender = _Sender(target, chunks())
                    selector.register(
                        sender.socket, selectors.EVENT_WRITE | (selectors.EVENT_READ * reads), sender
                    )
                    senders.add(sender)
            for key, events in selector.select(1):
                sender = key.data
                try:
                    if events & selectors.EVENT_READ:
                        sender.discard()
                    if events & selectors.EVENT_WRITE and not sender.send():
                        selector.modify(sender.socket, selectors.EVENT_READ, sender)
                except OSError:
                    selector.unregister(sender.socket)
                    senders.discard(sender)
                    sender.socket.close()


class _Sender:
    def __init__(self, target: Target, chunks: Iterator[bytes]) -> None:
        self.socket = target.connect()
        self.socket.settimeout(0)
        self._target = target
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._received = bytearray(_BUFFER_BYTES)

    def discard(self) -> None:
        if not self.socket.recv_into(self._received):
            raise ConnectionResetError("the server has closed the connection")

    def send(self) -> bool:
        """Whether there is more to send."""
        if not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise ConnectionAbortedError("everything is sent")
            if not chunk:
                return False
            self._rest = memoryview(chunk)
        sent = self.socket.send(self._rest)
        self._target.sent_bytes += sent
        self._rest = self._rest[sent:]
        return True
