"""Threads that call a server until they are stopped, whatever it answers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import numpy as np

from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.colours import SIDE

PIXELS = np.zeros((SIDE, SIDE, 3), np.uint8).tobytes()


@contextmanager
def calls(
    server: str, model: str = "colours", *, images: int = 1, threads: int = 4, timeout_s: float = 10
) -> Iterator[None]:
    """Call `Classify` with black images from this many threads, each with one call at a time."""
    request = _request(model, images)
    stopped = threading.Event()

    def call() -> None:
        with grpc.insecure_channel(server, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            classify = channel.unary_unary("/lenserve.v1.Classifier/Classify")
            while not stopped.is_set():
                with suppress(grpc.RpcError):
                    classify(request, timeout=timeout_s)
                stopped.wait(0.005)

    callers = [threading.Thread(target=call) for _ in range(threads)]
    for each in callers:
        each.start()
    try:
        yield
    finally:
        stopped.set()
        for each in callers:
            each.join()


def stream(server: str, model: str = "colours") -> None:
    """Send one message through `ClassifyStream`, and receive its answer."""
    with grpc.insecure_channel(server) as channel:
        classify = channel.stream_stream("/lenserve.v1.Classifier/ClassifyStream")
        list(classify(iter([_request(model, 1)]), timeout=10))


def _request(model: str, images: int) -> bytes:
    image = pb.Image(pixels=pb.Pixels(height=SIDE, width=SIDE, channels=3, data=PIXELS))
    return pb.ClassifyRequest(model=model, images=[image] * images).SerializeToString()
