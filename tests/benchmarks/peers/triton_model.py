"""model.py of Triton's Python backend: joins the requests that Triton batched, and runs ONNX Runtime once.

Input `image` is uint8 (N, H, W, C), or BYTES (N, 1) of JPEG files; output `probabilities` float32 (N, K).
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from preparation import open_session, preparation


class TritonPythonModel:
    """What Triton instantiates."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network that stands beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = open_session(folder / "network.onnx")
        self.prepare = preparation(self.session)
        self.input = self.session.get_inputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run for all requests, then each its own rows."""
        given = [pb_utils.get_input_tensor_by_name(each, "image").as_numpy() for each in requests]
        joined = np.concatenate(given) if len(given) > 1 else given[0]
        if joined.dtype == np.object_:
            joined = np.stack([self.prepare(each) for each in joined[:, 0]])  # (N, 3, 224, 224) float32
        (probabilities,) = self.session.run(["probabilities"], {self.input: joined})  # (N, K)
        responses, first = [], 0
        for rows in map(len, given):
            tensor = pb_utils.Tensor("probabilities", probabilities[first : first + rows])
            responses.append(pb_utils.InferenceResponse([tensor]))
            first += rows
        return responses
