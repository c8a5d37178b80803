"""model.py of a Triton backend named onnxruntime, for a Triton whose own one is not installed.

It opens <version>/model.onnx, and gives the outputs that config.pbtxt names, as Triton's own backend does.
"""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton instantiates."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network that the repository holds."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the network for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - Triton's classes have no types
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()  # (N, H, W, C) uint8
        values = self.session.run(self.outputs, {"image": images})
        tensors = [pb_utils.Tensor(name, value) for name, value in zip(self.outputs, values, strict=True)]
        return pb_utils.InferenceResponse(tensors)
