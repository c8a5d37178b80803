"""NVIDIA's tritonclient, as a client of our server: tests/system/foreign_clients.py says what it has to do.

python triton_client.py HOST:PORT FOLDER COUNT. It makes its requests itself, of the pixels in FOLDER.
"""

import json
import queue
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

MODEL = "colours"
TIMEOUT_S = 60
CANCELS = 20


def _input(folder: str) -> triton.InferInput:
    pixels = np.load(Path(folder) / "pixels.npy")  # (1, H, W, C) uint8
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def _outcome(result: Any, error: Any, expected: np.ndarray) -> str:  # noqa: ANN401 - untyped
    if error is not None:
        return f"{error.status()}: {error.message()}"
    return "OK" if np.array_equal(result.as_numpy("probabilities"), expected) else "a wrong answer"


def _burst(
    client: triton.InferenceServerClient, tensor: triton.InferInput, expected: np.ndarray, count: int
) -> Counter[str]:
    outcomes: queue.Queue[str] = queue.Queue()
    for _ in range(count):
        client.async_infer(
            MODEL,
            [tensor],
            callback=lambda result, error: outcomes.put(_outcome(result, error, expected)),
            client_timeout=TIMEOUT_S,
        )
    return Counter(outcomes.get(timeout=TIMEOUT_S) for _ in range(count))


def _stream(
    client: triton.InferenceServerClient, tensor: triton.InferInput, expected: np.ndarray, count: int
) -> Counter[str]:
    outcomes: queue.Queue[str] = queue.Queue()
    client.start_stream(lambda result, error: outcomes.put(_outcome(result, error, expected)))
    for number in range(count):
        client.async_stream_infer(MODEL, [tensor], request_id=str(number))
    counted = Counter(outcomes.get(timeout=TIMEOUT_S) for _ in range(count))
    client.stop_stream()
    return counted


def _late(client: triton.InferenceServerClient, tensor: triton.InferInput) -> str:
    try:
        client.infer(MODEL, [tensor], timeout=1)  # in microseconds, kept by the server
    except triton.InferenceServerException as error:
        return str(error.status())
    return "OK"


def _cancelled(client: triton.InferenceServerClient, tensor: triton.InferInput) -> str:
    outcomes: queue.Queue[str] = queue.Queue()

    def keep(result: Any, error: Any) -> None:  # noqa: ANN401 - untyped
        outcomes.put("OK" if error is None else str(error.status()))

    for _ in range(CANCELS):  # the answer to one may be there before it is cancelled
        client.async_infer(MODEL, [tensor], callback=keep).cancel()
    return max(outcomes.get(timeout=TIMEOUT_S) for _ in range(CANCELS))


def _main(address: str, folder: str, count: str) -> dict[str, Any]:
    tensor = _input(folder)
    with triton.InferenceServerClient(address) as client:
        expected = client.infer(MODEL, [tensor]).as_numpy("probabilities")
        return {
            "version": f"tritonclient {version('tritonclient')}",
            "unary": _outcome(client.infer(MODEL, [tensor]), None, expected),
            "stream": _stream(client, tensor, expected, int(count) // 10),
            "late": _late(client, tensor),
            "cancelled": _cancelled(client, tensor),
            "burst": _burst(client, tensor, expected, int(count)),
            "after": _outcome(client.infer(MODEL, [tensor]), None, expected),
        }


print(json.dumps(_main(*sys.argv[1:])))  # noqa: T201 - its result
