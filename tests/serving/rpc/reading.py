"""Messages as transports pass them to handlers: functions that read them."""

from serving.rpc.handlers import Read


def sent(message: bytes = b"") -> Read:
    """A message that has already arrived."""

    async def read() -> bytes:
        return message

    return read
