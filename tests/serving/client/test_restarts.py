"""Real servers that stop and start again while both clients call them: nothing is lost."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from serving.client.client import AsyncClient, Client, Prediction
from serving.client.messages import Result
from tests.colours import Publish
from tests.servers import Serve, StartServer

Image = npt.NDArray[np.uint8]

OUTAGE_S = 4.0
BEFORE, AFTER = 10, 10  # results
PAUSE_S = 0.005  # between calls: four threads and the server share a core
LABELS = ("red", "green", "blue")
IMAGES = [np.full((8, 8, 3), np.roll((255, 0, 0), n), np.uint8) for n in range(3)]  # (H, W, 3) RGB, as LABELS
RED = IMAGES[0]


def _label(result: Result) -> str:
    return result.top.label if isinstance(result, Prediction) else result.message


class _Load:
    """Calls of both clients, unary and in streams, each in a thread, until `end`."""

    def __init__(self, address: str, *, timeout_s: float = 120.0) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.counts = [0, 0, 0, 0]
        self.end = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        kinds: list[Callable[[int], None]] = [
            self._unary,
            self._stream,
            self._unary_async,
            self._stream_async,
        ]
        self._runs = [self._pool.submit(kind, place) for place, kind in enumerate(kinds)]

    def wait_for_more(self, count: int) -> None:
        """Wait until each kind has so many more results."""
        wanted = [each + count for each in self.counts]
        while any(map(int.__lt__, self.counts, wanted)):
            for failed in filter(Future.done, self._runs):
                failed.result()
            self.end.wait(PAUSE_S)

    def close(self) -> None:
        """End all calls."""
        self.end.set()
        for run in self._runs:
            run.result(timeout=self.timeout_s)
        self._pool.shutdown()

    def _count(self, place: int, result: Result) -> None:
        assert _label(result) == LABELS[self.counts[place] % 3]  # in order, and each once
        self.counts[place] += 1

    def _images(self) -> Iterator[Image]:
        for image in itertools.cycle(IMAGES):
            if self.end.wait(PAUSE_S):
                return
            yield image

    async def _images_async(self) -> AsyncIterator[Image]:
        for image in itertools.cycle(IMAGES):
            await asyncio.sleep(PAUSE_S)
            if self.end.is_set():
                return
            yield image

    def _unary(self, place: int) -> None:
        with Client(self.address, timeout_s=self.timeout_s) as client:
            for image in self._images():
                self._count(place, client.classify(image, model="colours"))

    def _stream(self, place: int) -> None:
        with Client(self.address, timeout_s=self.timeout_s) as client:
            for result in client.classify_stream(self._images(), model="colours"):
                self._count(place, result)

    def _unary_async(self, place: int) -> None:
        async def call() -> None:
            async with AsyncClient(self.address, timeout_s=self.timeout_s) as client:
                async for image in self._images_async():
                    self._count(place, await client.classify(image, model="colours"))

        asyncio.run(call())

    def _stream_async(self, place: int) -> None:
        async def call() -> None:
            async with AsyncClient(self.address, timeout_s=self.timeout_s) as client:
                async for result in client.classify_stream(self._images_async(), model="colours"):
                    self._count(place, result)

        asyncio.run(call())


def test_a_killed_server_that_is_back_after_four_seconds_loses_no_call(
    publish: Publish, start_server: StartServer
) -> None:
    """SIGKILL, in the middle of calls and streams of both clients. Streams continue where they were."""
    publish()
    server = start_server()
    load = _Load(server.grpc)
    try:
        load.wait_for_more(BEFORE)
        server.process.kill()
        killed_s = time.monotonic()
        server.process.wait()
        load.end.wait(OUTAGE_S - 2)  # the start takes the rest
        start_server("--grpc-port", server.grpc.rpartition(":")[2])
        load.end.wait(killed_s + OUTAGE_S - time.monotonic())
        load.wait_for_more(AFTER)
    finally:
        load.close()


@pytest.mark.parametrize("transport", ["h2", "grpc"])
async def test_a_graceful_restart_loses_no_call(publish: Publish, serve: Serve, transport: str) -> None:
    """As in a rolling update of a single instance: the streams are ended, and resume."""
    publish()
    async with serve(transport=transport) as server:
        port = server.grpc.port
        load = _Load(f"127.0.0.1:{port}")
        await asyncio.to_thread(load.wait_for_more, BEFORE)
        await server.stop()
    async with serve(grpc_port=port, transport=transport):
        try:
            await asyncio.to_thread(load.wait_for_more, AFTER)
        finally:
            await asyncio.to_thread(load.close)


async def test_a_source_that_waits_for_its_next_image_survives_a_restart(
    publish: Publish, serve: Serve
) -> None:
    """The stream has no image in flight when the server stops; later images find the new server."""
    publish()
    arriving: asyncio.Queue[Image | None] = asyncio.Queue()

    async def camera() -> AsyncIterator[Image]:
        while (image := await arriving.get()) is not None:
            yield image

    async with serve() as server:
        port = server.grpc.port
        client = AsyncClient(f"127.0.0.1:{port}")
        stream = client.classify_stream(camera(), model="colours")
        arriving.put_nowait(RED)
        assert _label(await anext(stream)) == "red"
        waiting = asyncio.ensure_future(anext(stream))
        await server.stop()
    async with serve(grpc_port=port):
        arriving.put_nowait(RED)
        assert _label(await waiting) == "red"
        arriving.put_nowait(None)
        assert [each async for each in stream] == []
        await client.close()
