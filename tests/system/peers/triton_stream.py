"""NVIDIA's clients over one stream each: prints the results as JSON. Runs inside .peers/triton."""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

IMAGES = 200

address, _, pixels_file = sys.argv[1:]
pixels = np.load(pixels_file)  # (N, H, W, C) uint8


def tensor(number: int) -> triton.InferInput:
    """One of the images."""
    given = triton.InferInput("image", [1, *pixels.shape[1:]], "UINT8")
    given.set_data_from_numpy(pixels[number % len(pixels)][np.newaxis])
    return given


def summary(result: triton.InferResult | None, error: triton.InferenceServerException | None) -> list[object]:
    """Return id and probabilities, or the error message."""
    if error is not None:
        return ["", error.message()]
    assert result is not None
    response = result.get_response()
    assert response.parameters["triton_final_response"].bool_param
    return [response.id, result.as_numpy("probabilities")[0].tolist()]


def stream() -> list[list[object]]:
    """start_stream and async_stream_infer, with an unknown model in between."""
    answers: queue.Queue[list[object]] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put(summary(result, error)))
        for number in range(IMAGES):
            model = "shapes" if number == IMAGES // 2 else "colours"
            client.async_stream_infer(model, [tensor(number)], request_id=str(number))
        client.stop_stream()
    return [answers.get(timeout=30) for _ in range(IMAGES)]


async def stream_aio() -> list[list[object]]:
    """stream_infer of an asynchronous iterator."""

    async def requests() -> AsyncIterator[dict[str, object]]:
        for number in range(IMAGES):
            yield {"model_name": "colours", "inputs": [tensor(number)], "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        return [summary(*answer) async for answer in client.stream_infer(requests())]


json.dump({"sync": stream(), "aio": asyncio.run(stream_aio())}, sys.stdout)
