"""The networks that are served: a large one with random weights, in FP32 and FP16, and LeNet-5."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from serving.bundle import (
    MODEL_FILE,
    Bundle,
    Description,
    Geometry,
    Golden,
    Repository,
    Variant,
    variant_file,
    write_golden,
)
from tests.benchmarks.description import describe
from tests.benchmarks.networks import Backbone
from training.export.export import Classifier, export
from training.networks import build
from training.recipe import resolve_network

_NOISE_STEPS = 20  # running statistics move by a tenth each time
_FP16_TOLERANCE = 0.02


def backbone(repository: Repository, name: str, side: int, device: str) -> Bundle:
    """One of torchvision's networks; its FP16 form lies beside it."""
    torch.manual_seed(0)
    network = Backbone(name).to(device).train()
    noise = torch.randint(0, 256, (16, side, side, 3), dtype=torch.uint8)  # (N, H, W, C)
    with torch.no_grad():
        for _ in range(_NOISE_STEPS):  # without it activations would vanish into denormals
            network(noise.to(device))
    geometry = Geometry(height=side, width=side, channels=3)
    return repository.publish(
        name, _writer(network.cpu().eval(), name, geometry, noise[:4].numpy(), fp16=True)
    )


def lenet5(repository: Repository) -> Bundle:
    """LeNet-5 as training builds it, untrained."""
    torch.manual_seed(0)
    recipe = resolve_network("lenet5")
    network = build(recipe.network, recipe.geometry, 10)
    noise = np.random.default_rng(0).integers(0, 256, (4, *recipe.geometry.shape), dtype=np.uint8)
    return repository.publish("lenet5", _writer(network.eval(), "lenet5", recipe.geometry, noise, classes=10))


def _writer(
    network: nn.Module,
    name: str,
    geometry: Geometry,
    images: np.ndarray,
    *,
    classes: int = 1000,
    fp16: bool = False,
) -> Callable[[Path], Description]:
    def write(folder: Path) -> Description:
        file = folder / MODEL_FILE
        export(Classifier(network, temperature=1.0), geometry, file)  # type: ignore[arg-type]
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        probabilities, embedding = session.run(["probabilities", "embedding"], {"image": images})
        write_golden(Golden(images, probabilities), folder)
        parameters = sum(each.numel() for each in network.parameters())
        description = describe(name, geometry, parameters, classes=classes, embedding_size=embedding.shape[1])
        if not fp16:
            return description
        half = convert_float_to_float16(onnx.load(file), keep_io_types=True)
        onnx.save(half, folder / variant_file("fp16"))
        variant = Variant(evaluation=description.evaluation, same_labels=0, golden_tolerance=_FP16_TOLERANCE)
        return description.model_copy(update={"variants": {"fp16": variant}})

    return write
