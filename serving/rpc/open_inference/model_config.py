"""Triton's model configuration of a version, for its clients and for its repositories. A pure function."""

from serving.bundle import Manifest
from serving.pb.inference import model_config_pb2 as pb
from serving.rpc.open_inference import tensors

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"


def model_config(name: str, manifest: Manifest, *, max_batch_size: int, label_file: str) -> pb.ModelConfig:
    """Return the configuration of a version.

    Args:
        name: of the model.
        manifest: of the version.
        max_batch_size: images in one request.
        label_file: file with the labels, relative to the model's folder.
    """
    image = pb.ModelInput(
        name=tensors.INPUT,
        data_type=pb.TYPE_UINT8,
        format=pb.ModelInput.FORMAT_NHWC,
        dims=input_dims(manifest),
    )
    probabilities = pb.ModelOutput(
        name=tensors.PROBABILITIES,
        data_type=pb.TYPE_FP32,
        dims=[len(manifest.labels)],
        label_filename=label_file,
    )
    return pb.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=max_batch_size,
        input=[image],
        output=[probabilities],
        dynamic_batching=pb.ModelDynamicBatching(),
    )


def input_dims(manifest: Manifest) -> list[int]:
    """Return (height, width, channels), without the batch."""
    geometry = manifest.geometry
    return [geometry.height, geometry.width, geometry.channels]
