"""Compression of messages: under limits, in steps, and large messages in a thread. zlib releases the lock."""

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from serving.rpc.handlers import Failure
from serving.rpc.status import Code, Status
from serving.transports.http.asgi import RequestRefused
from serving.transports.rpc_over_http.grpc_framing import WINDOW_BITS, frame, malformed, refused, too_long
from serving.turns import Turns, copy_us

# A step on the event loop, to decompress or to compress: 0.2 to 0.5 ms.
_SMALL_BYTES = 2**16
_DECOMPRESS_US = 200  # at most
_COMPRESS_US, _COMPRESSED_BYTES_PER_US = 20, 100
# A step in a thread. Between two steps, bytes are charged, and a cancelled call ends.
_STEP_IN_BYTES = 2**16
_STEP_OUT_BYTES = 2**20

# One thread: however many messages are large, the others have the rest of the cores. malloc_trim(3) leaves up
# to 16 MiB at the end of each thread's arena: of gzip bombs, asyncio's threads kept 57 MiB, and this one 8.
_thread = ThreadPoolExecutor(1, thread_name_prefix="compression")

# Deflate reaches 1032:1, with constant bytes. Files of images do not compress, raw pixels of photographs and
# X-rays 2:1 to 20:1. Blank or drawn ones may be above this ratio as long as they are small.
MAX_RATIO = 200
_ANY_RATIO_BYTES = 2**20


async def decompress(
    message: bytes, encoding: bytes, max_message_bytes: int, charge: Callable[[int], None], turns: Turns
) -> bytes:
    """Decompress gzip or deflate.

    Args:
        message: one compressed message.
        encoding: its compression.
        max_message_bytes: maximum size of the result.
        charge: called with the size of each part of the result; raises RequestRefused if it is too large.
        turns: of the event loop.

    Raises:
        Failure: the compression is unknown, the data is invalid, or the result is too long: alone, in
            comparison with the data, or for the budget. At most one step is decompressed beyond a limit.
    """
    inflation = _Inflation(message, encoding, max_message_bytes)
    await turns.take(_DECOMPRESS_US)
    parts = [inflation.step(_SMALL_BYTES)]
    loop = asyncio.get_running_loop()
    try:
        charge(len(parts[0]))
        while not inflation.is_over:
            parts.append(await loop.run_in_executor(_thread, inflation.step, _STEP_OUT_BYTES))
            charge(len(parts[-1]))
    except RequestRefused as refusal:
        raise refused(refusal) from refusal
    if len(parts) > 1:
        await turns.take(copy_us(sum(map(len, parts))))
    return b"".join(parts)


async def framed(message: bytes, turns: Turns, *, compressed: bool) -> bytes:
    """Return a message with its prefix, optionally compressed with gzip."""
    if not compressed:
        return frame(message)
    if len(message) > _SMALL_BYTES:
        compress = partial(frame, message, compressed=True)
        return await asyncio.get_running_loop().run_in_executor(_thread, compress)
    await turns.take(_COMPRESS_US + len(message) // _COMPRESSED_BYTES_PER_US)
    return frame(message, compressed=True)


class _Inflation:
    """The decompression of one message."""

    def __init__(self, message: bytes, encoding: bytes, max_message_bytes: int) -> None:
        if encoding not in WINDOW_BITS:
            raise malformed(
                f"a message is marked as compressed, but its encoding is "
                f"{encoding.decode('ascii', 'replace')!r}: use gzip or deflate"
            )
        self.is_over = False
        self._encoding = encoding.decode()
        self._message = message
        self._max_message_bytes = max_message_bytes
        self._stream = zlib.decompressobj(WINDOW_BITS[encoding])
        self._taken_bytes = 0
        self._size_bytes = 0  # of the result so far
        self._has_more_output = False

    def step(self, max_bytes: int) -> bytes:
        """Return the next part of the result, of at most max_bytes."""
        stream = self._stream
        piece = stream.unconsumed_tail
        if not piece and not self._has_more_output:
            piece = self._message[self._taken_bytes : self._taken_bytes + _STEP_IN_BYTES]
            self._taken_bytes += len(piece)
        try:
            part = stream.decompress(piece, max_bytes)
        except zlib.error as error:
            raise malformed(f"cannot decompress a message as {self._encoding}") from error
        self._has_more_output = len(part) == max_bytes
        self._size_bytes += len(part)
        self._check_size()
        self._check_end(is_stuck=not piece and not part)
        return part

    def _check_size(self) -> None:
        size, sent = self._size_bytes, len(self._message)
        if size > self._max_message_bytes:
            raise too_long(
                f"more than {self._max_message_bytes} bytes when decompressed", self._max_message_bytes
            )
        if size > _ANY_RATIO_BYTES and size > MAX_RATIO * sent:
            text = (
                f"a message of {sent} bytes has more than {MAX_RATIO * sent} when decompressed, the limit of "
                f"{MAX_RATIO} times its size beyond {_ANY_RATIO_BYTES} bytes: send it without compression"
            )
            raise Failure(Status(Code.RESOURCE_EXHAUSTED, "COMPRESSION_RATIO", text))

    def _check_end(self, *, is_stuck: bool) -> None:
        is_all_taken = self._taken_bytes == len(self._message)
        self.is_over = self._stream.eof
        if self.is_over and (self._stream.unused_data or not is_all_taken):
            raise malformed(f"bytes follow the {self._encoding} data of a message")
        if is_stuck and is_all_taken and not self.is_over:
            raise malformed(f"a message ends inside its {self._encoding} data")
