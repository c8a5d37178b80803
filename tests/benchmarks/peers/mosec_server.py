"""mosec: a Rust HTTP front that batches, and one Python worker that runs ONNX Runtime on the batch.

    mosec_server.py --port PORT     with MODEL in the environment

POST /inference takes raw uint8 pixels or a JPEG file, as the network wants, and answers with float32
probabilities.
"""

import os

import numpy as np
from mosec import Server, Worker
from preparation import open_session, preparation

MAX_BATCH_SIZE = 32
MAX_WAIT_MS = 1


class Classify(Worker):  # type: ignore[misc] # mosec lives in an environment of its own
    """One network behind mosec's queue."""

    def __init__(self) -> None:
        super().__init__()
        self.session = open_session(os.environ["MODEL"])
        self.prepare = preparation(self.session)
        self.input = self.session.get_inputs()[0].name

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is: no JSON."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Send the bytes as they are."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Answer every request of a batch."""
        images = np.stack([self.prepare(each) for each in data])  # (N, ...)
        (probabilities,) = self.session.run(["probabilities"], {self.input: images})  # (N, K)
        return [row.tobytes() for row in probabilities]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_WAIT_MS)
    server.run()
