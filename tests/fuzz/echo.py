"""RPCs that answer with what they get, for targets that are about what surrounds messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from serving.rpc.handlers import Read, message_of
from serving.rpc.routes import Call

UNARY = "/echo.Echo/Unary"
STREAM = "/echo.Echo/Stream"
MAX_MESSAGE_BYTES = 4096


async def echo_unary(read: bytes | Read, _call: Call) -> bytes:
    """Return the message."""
    return await message_of(read)


async def echo_stream(messages: AsyncIterator[bytes], _call: Call) -> AsyncGenerator[Sequence[bytes], None]:
    """Yield each message."""
    async for message in messages:
        yield (message,)
