"""The core of gRPC under Python, as a client of our server: see tests/system/foreign_clients.py."""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

CLASSIFY = "/lenserve.v1.Classifier/Classify"
STREAM = "/lenserve.v1.Classifier/ClassifyStream"
WATCH = "/grpc.health.v1.Health/Watch"
TIMEOUT_S = 60


class _Client:
    def __init__(self, channel: grpc.aio.Channel, folder: Path) -> None:
        self._classify = channel.unary_unary(CLASSIFY)
        self._stream = channel.stream_stream(STREAM)
        self._watch = channel.unary_stream(WATCH)
        names = ("request", "answer", "stream-request", "stream-answer")
        self._request, self._answer, self._stream_request, self._streamed = (
            (folder / name).read_bytes() for name in names
        )

    async def unary(self) -> str:
        try:
            answer = await self._classify(self._request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return _code(error)
        return "OK" if answer == self._answer else "a wrong answer"

    async def burst(self, count: int) -> Counter[str]:
        return Counter(await asyncio.gather(*(self.unary() for _ in range(count))))

    async def stream(self, count: int) -> Counter[str]:
        counted: Counter[str] = Counter()
        try:
            async for answer in self._stream(iter([self._stream_request] * count), timeout=TIMEOUT_S):
                counted["OK" if answer == self._streamed else "a wrong answer"] += 1
        except grpc.aio.AioRpcError as error:
            counted[_code(error)] += 1
        return counted

    async def late(self) -> str:
        try:
            async for _ in self._watch(b"", timeout=0.3):
                pass
        except grpc.aio.AioRpcError as error:
            return _code(error)
        return "OK"

    async def cancelled(self) -> str:
        call = self._watch(b"", timeout=TIMEOUT_S)
        await call.read()
        call.cancel()
        return f"{(await call.code()).value[0]}: "


def _code(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().value[0]}: {error.details()}"


async def _main(address: str, folder: str, count: str) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        client = _Client(channel, Path(folder))
        return {
            "version": f"grpcio {grpc.__version__}",
            "unary": await client.unary(),
            "stream": await client.stream(int(count) // 10),
            "late": await client.late(),
            "cancelled": await client.cancelled(),
            "burst": await client.burst(int(count)),
            "after": await client.unary(),
        }


print(json.dumps(asyncio.run(_main(*sys.argv[1:]))))  # noqa: T201 - its result
