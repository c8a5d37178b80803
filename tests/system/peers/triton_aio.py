"""NVIDIA's asyncio client against a server: prints the results as JSON. Runs inside .peers/triton."""

import asyncio
import json
import sys

import numpy as np
import tritonclient.grpc.aio as triton


async def main(address: str, image_file: str, pixels_file: str) -> None:
    """Call, and print."""
    pixels = np.load(pixels_file)  # (N, H, W, C) uint8
    encoded = np.array([open(image_file, "rb").read()], dtype=np.object_)  # noqa: ASYNC230, PTH123, SIM115

    async with triton.InferenceServerClient(address) as client:

        async def infer(values: np.ndarray, datatype: str) -> list[list[float]]:
            tensor = triton.InferInput("image", list(values.shape), datatype)
            tensor.set_data_from_numpy(values)
            result = await client.infer("colours", [tensor], request_id="7")
            assert result.get_response().id == "7"
            return result.as_numpy("probabilities").tolist()

        report = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("colours", "1"),
            "platform": (await client.get_model_metadata("colours")).platform,
            "name": (await client.get_model_config("colours")).config.name,
            "pixels": await infer(pixels, "UINT8"),
            "encoded": await infer(encoded, "BYTES"),
            "together": await asyncio.gather(*(infer(pixels, "UINT8") for _ in range(8))),
        }
    json.dump(report, sys.stdout)


asyncio.run(main(*sys.argv[1:]))
