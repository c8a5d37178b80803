"""The body of a request: receives it, and discards the rest if the answer was sent before its end."""

import asyncio
from contextlib import suppress

from serving.transports.http.asgi import Event, Receive, RequestRefused, request_body

# A server that closes a connection while its client still writes makes most clients lose the answer: TCP
# resets the connection. nginx's lingering_timeout is 5 s.
_LINGER_S = 2.0


class LingeringBody:
    """Receives a body. See `asgi.RequestBody` for its charge."""

    def __init__(self, receive: Receive, *, max_bytes: int, linger_s: float = _LINGER_S) -> None:
        """Store the options.

        Args:
            receive: receives the next event of ASGI.
            max_bytes: maximum bytes to discard.
            linger_s: maximum time to discard.
        """
        self._body = request_body(receive)
        self._max_bytes = max_bytes
        self._linger_s = linger_s
        self._is_over = False

    async def receive(self) -> Event:
        """Return the next event."""
        event = await self._body()
        self._is_over = not event.get("more_body", False)
        return event

    __call__ = receive

    @property
    def may_pause(self) -> bool:
        """See `asgi.RequestBody`."""
        return self._body.may_pause

    @may_pause.setter
    def may_pause(self, may_pause: bool) -> None:
        self._body.may_pause = may_pause

    def take_whole(self) -> bytes | None:
        """See `asgi.RequestBody`."""
        return None

    def charge(self, size: int) -> None:
        """See `asgi.RequestBody`."""
        self._body.charge(size)

    def release(self, size: int) -> None:
        """See `asgi.RequestBody`."""
        self._body.release(size)

    async def discard(self) -> None:
        """Receive what is left, within limits, so that a client that is still sending reads its answer."""
        size = 0
        with suppress(TimeoutError, RequestRefused):
            async with asyncio.timeout(self._linger_s):
                while not self._is_over and size <= self._max_bytes:
                    discarded_bytes = len((await self.receive()).get("body", b""))
                    self.release(discarded_bytes)
                    size += discarded_bytes
