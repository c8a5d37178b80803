"""Where is a network run best, on the event loop or in a thread? By what its run costs.

A stand-in for a network burns CPU time without the interpreter's lock, as ONNX Runtime does; for each request
the event loop runs as much Python as it does in the server. Both ways take turns.
"""

import asyncio
import hashlib
import os
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from serving.batching.batcher import Batcher
from serving.batching.policy import BatchPolicy
from serving.bundle.images import Pixels
from serving.engine.base import Output

RUN_US = (50, 100, 250, 500, 1000, 2000)  # of one image
IN_FLIGHT = (1, 16)
ROUNDS = 5
WINDOW_S = 0.4
PYTHON_US = 60
MAX_BATCH_SIZE = 8


def burner(us: float) -> Callable[[Pixels], Output]:
    """A network that takes so long for each image."""
    block = bytes(4096)
    started_s = time.perf_counter()
    for _ in range(2000):
        hashlib.sha256(block)
    blocks_per_image = us * 1e-6 / ((time.perf_counter() - started_s) / 2000)

    def run(images: Pixels) -> Output:
        hashlib.sha256(bytes(int(len(block) * blocks_per_image * len(images))))
        return Output(np.zeros((len(images), 1), np.float32), np.zeros((len(images), 1), np.float32))

    return run


async def measure(
    run: Callable[[Pixels], Output], in_flight: int, max_images_on_loop: int
) -> tuple[float, float]:
    """CPU microseconds a request, and requests a second."""
    image = np.zeros((1, 1, 1, 1), np.uint8)
    done = 0
    until_s = time.perf_counter() + WINDOW_S

    async def client(batcher: Batcher) -> None:
        nonlocal done
        while time.perf_counter() < until_s:
            burned_s = time.perf_counter()
            while time.perf_counter() - burned_s < PYTHON_US * 1e-6:
                pass
            await batcher.submit(image)
            done += 1

    async with Batcher(run, BatchPolicy(MAX_BATCH_SIZE), max_images_on_loop=max_images_on_loop) as batcher:
        started_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client(batcher) for _ in range(in_flight)))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - started_s
    return cpu_s / done * 1e6, done / wall_s


def main() -> None:
    """Print what the loop costs and gives, as a ratio to the thread."""
    order = random.Random(3)  # noqa: S311 - an order, no secret
    print(f"{len(os.sched_getaffinity(0))} cores")
    print("| run, us | in flight | CPU, loop/thread | requests/s, loop/thread |\n| --- | --- | --- | --- |")
    for us in RUN_US:
        run = burner(us)
        for in_flight in IN_FLIGHT:
            cpu, rate = [], []
            for _ in range(ROUNDS):
                taken = {}
                for place in order.sample([0, MAX_BATCH_SIZE], 2):
                    taken[place] = asyncio.run(measure(run, in_flight, place))
                cpu.append(taken[MAX_BATCH_SIZE][0] / taken[0][0])
                rate.append(taken[MAX_BATCH_SIZE][1] / taken[0][1])
            print(
                f"| {us} | {in_flight} | {statistics.median(cpu):.2f} | {statistics.median(rate):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
