"""Shared memory: one process reads what the other writes, and it grows."""

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.base import Output
from serving.engine.remote.protocol import RunRequest, SharedMemory

SIZES = st.integers(1, 9)


@given(st.lists(st.tuples(SIZES, SIZES, SIZES, SIZES, SIZES, SIZES), min_size=1, max_size=5))
def test_both_sides_see_the_same_images_and_outputs(
    exchanges: list[tuple[int, int, int, int, int, int]],
) -> None:
    """Alternately, in the same memory, larger and smaller than before."""
    worker = SharedMemory.create()
    device_server = SharedMemory(os.dup(worker.descriptor))
    random = np.random.default_rng(len(exchanges))
    for count, height, width, channels, classes, features in exchanges:
        images = random.integers(0, 256, (count, height, width, channels), np.uint8)
        worker.write_images(images)
        assert np.array_equal(
            device_server.images(RunRequest.unpack(RunRequest(*images.shape).pack())), images
        )

        output = Output(
            random.random((count, classes), np.float32), random.random((count, features), np.float32)
        )
        seen = worker.output(device_server.write_output(output))
        assert np.array_equal(seen.probabilities, output.probabilities)
        assert np.array_equal(seen.embedding, output.embedding)
        worker.write_images(images)  # what was read is a copy
        assert np.array_equal(seen.probabilities, output.probabilities)
    worker.close()
    device_server.close()


def test_memory_has_no_name() -> None:
    """Nothing stays in /dev/shm, even if the processes are killed."""
    before = set(os.listdir("/dev/shm"))  # noqa: PTH208, S108 - names alone
    memory = SharedMemory.create()
    memory.write_images(np.zeros((1, 64, 64, 3), np.uint8))
    assert set(os.listdir("/dev/shm")) <= before  # noqa: PTH208, S108
    assert "memfd:" in os.readlink(f"/proc/self/fd/{memory.descriptor}")  # noqa: PTH115
    memory.close()
