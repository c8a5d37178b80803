"""NVIDIA's client with tensors in shared memory: prints the results as JSON. Runs inside .peers/triton."""

import json
import os
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm

address, _, pixels_file = sys.argv[1:]
pixels = np.load(pixels_file)  # (N, H, W, C) uint8
output_bytes = len(pixels) * 3 * 4
key = f"lenserve-peer-{os.getpid()}"
client = triton.InferenceServerClient(address)


def refusal(name: str, foreign_key: str) -> str:
    """Return the failure of a registration that must fail."""
    try:
        client.register_system_shared_memory(name, foreign_key, 1)
    except triton.InferenceServerException as error:
        return error.status()
    raise AssertionError(foreign_key)


given = shm.create_shared_memory_region("given", f"{key}-in", pixels.nbytes)
wanted = shm.create_shared_memory_region("wanted", f"{key}-out", output_bytes)
try:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    shm.set_shared_memory_region(given, [pixels])
    client.register_system_shared_memory("given", f"{key}-in", pixels.nbytes)
    client.register_system_shared_memory("wanted", f"{key}-out", output_bytes)

    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_shared_memory("given", pixels.nbytes)
    output = triton.InferRequestedOutput("probabilities")
    output.set_shared_memory("wanted", output_bytes)
    result = client.infer("colours", [tensor], outputs=[output])

    shape = result.get_output("probabilities").shape
    report = {
        "pixels": shm.get_contents_as_numpy(wanted, np.float32, list(shape)).tolist(),
        "status": sorted(client.get_system_shared_memory_status(as_json=True)["regions"]),
        "refused": [refusal("given", f"{key}-in"), refusal("other", "someone-elses")],
    }
    client.unregister_system_shared_memory("given")
    report["left"] = sorted(client.get_system_shared_memory_status(as_json=True)["regions"])
finally:
    shm.destroy_shared_memory_region(given)
    shm.destroy_shared_memory_region(wanted)
client.close()
json.dump(report, sys.stdout)
