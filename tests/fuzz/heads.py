"""Header blocks: what a connection's reader makes of them, compared with hpack's decoder without a cache."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import hpack
from hpack.exceptions import HPACKError

from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, StreamBroken
from serving.transports.http.http2.headers import HeaderReader
from tests.fuzz.http2_frames import make_block

_MAX_BYTES = 2**14


class Heads:
    """Several blocks of one client."""

    def make(self, random: Random) -> list[bytes]:
        """Blocks that often repeat, as those of clients do."""
        known = [make_block(random, is_broken=random.random() < 0.3) for _ in range(random.randint(1, 3))]
        return [random.choice(known) for _ in range(random.randint(1, 5))]

    async def check(self, made: list[bytes]) -> str:
        """Each block is read, or refused with an error of RFC 9113; a second decoder agrees."""
        reader, decoder = HeaderReader(_MAX_BYTES), hpack.Decoder(max_header_list_size=2**20)
        outcome = "read"
        for block in made:
            try:
                fields = decoder.decode(block, raw=True)
            except HPACKError:
                fields = None
            try:
                headers = reader.read(block).scope["headers"]
            except StreamBroken as broken:
                if broken.code not in {ErrorCode.PROTOCOL_ERROR, ErrorCode.ENHANCE_YOUR_CALM}:
                    raise
                outcome = "stream error"
            except ConnectionBroken as broken:
                if broken.code not in {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}:
                    raise
                return f"connection error {broken.code.name}"
            else:
                assert fields is not None, "hpack refuses the block"
                plain = [
                    (bytes(name), bytes(value).strip(b" \t")) for name, value in fields if name[:1] != b":"
                ]
                assert [pair for pair in headers if pair[0] != b"host"] == [
                    pair for pair in plain if pair[0] != b"host"
                ]
        return outcome


@asynccontextmanager
async def open_heads() -> AsyncIterator[Heads]:
    """Open the target."""
    yield Heads()
