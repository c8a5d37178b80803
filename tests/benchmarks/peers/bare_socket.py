"""The least a server can do: 784 bytes come, LeNet-5 runs, 40 bytes go. No HTTP, no message, one client."""

import socket
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.peers.preparation import open_session

SIDE = 28


def main(model_file: Path) -> None:
    """Serve one connection until it ends."""
    session = open_session(model_file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while pixels := connection.recv(SIDE * SIDE, socket.MSG_WAITALL):
                image = np.frombuffer(pixels, np.uint8).reshape(1, SIDE, SIDE, 1)
                (probabilities,) = session.run(["probabilities"], {"image": image})
                connection.sendall(probabilities.tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
