"""NVIDIA's synchronous client against a server: prints the results as JSON. Runs inside .peers/triton."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton

address, image_file, pixels_file = sys.argv[1:]
client = triton.InferenceServerClient(address)
pixels = np.load(pixels_file)  # (N, H, W, C) uint8
encoded = np.array([open(image_file, "rb").read()], dtype=np.object_)  # noqa: PTH123, SIM115 - as its users write


def infer(
    values: np.ndarray, datatype: str, output: triton.InferRequestedOutput, **options: object
) -> np.ndarray:
    """Return the only output of a request."""
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    result = client.infer("colours", [tensor], outputs=[output], **options)
    return result.as_numpy(output.name())


def classes(values: np.ndarray) -> list[list[object]]:
    """Parse elements of the classification extension like the stock image_client.py."""
    parts = [element.decode("utf-8").split(":") for element in values.flatten()]
    return [[float(each[0]), int(each[1]), each[2]] for each in parts]


metadata = client.get_model_metadata("colours")
config = client.get_model_config("colours").config
try:
    client.get_model_metadata("shapes")
except triton.InferenceServerException as error:
    unknown = [error.status(), error.message()]
top_2 = triton.InferRequestedOutput("probabilities", class_count=2)
probabilities = triton.InferRequestedOutput("probabilities")
report = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready("colours"),
    "unknown_ready": client.is_model_ready("shapes"),
    "unknown": unknown,
    "server": client.get_server_metadata(as_json=True),
    "input": [metadata.inputs[0].name, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)],
    "output": [metadata.outputs[0].name, metadata.outputs[0].datatype, list(metadata.outputs[0].shape)],
    "max_batch_size": config.max_batch_size,
    "format": config.input[0].format,
    "pixels": infer(pixels, "UINT8", probabilities).tolist(),
    "gzip": infer(pixels, "UINT8", probabilities, compression_algorithm="gzip").tolist(),
    "deflate": infer(pixels, "UINT8", probabilities, compression_algorithm="deflate").tolist(),
    "encoded": infer(encoded, "BYTES", probabilities).tolist(),
    "embedding_shape": list(infer(pixels, "UINT8", triton.InferRequestedOutput("embedding")).shape),
    "classes": classes(infer(encoded, "BYTES", top_2)),
    "batch_classes": classes(infer(pixels, "UINT8", top_2)),
}
client.close()
json.dump(report, sys.stdout)
