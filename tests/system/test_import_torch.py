"""Exports of torch and timm, imported: the bundle gives the probabilities of the torch network itself."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serving.bundle import Repository
from serving.bundle.images import Pixels
from serving.engine.onnx import OnnxEngine
from serving.importing.importer import ImportResult, import_model
from serving.importing.settings import ImportSettings
from tests.serving.engines import CPU
from training.data.sources.imagenet import synsets
from training.evaluation.evaluate_bundle import evaluate_bundle
from training.networks.torchvision_import import import_torchvision

SIDE, CLASSES = 64, 7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def images() -> Pixels:
    """(5, H, W, 3) uint8: noise, from dark to bright."""
    noise = np.random.default_rng(1).integers(0, 128, (5, SIDE, SIDE, 3), np.uint8)
    return noise + np.linspace(0, 127, 5).astype(np.uint8)[:, None, None, None]


def network(name: str) -> nn.Module:
    """A network of torchvision, or a small one, with random weights."""
    torch.manual_seed(0)
    if name == "small":
        layers = (
            nn.Conv2d(3, 16, 5, stride=4),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return with_varied_outputs(nn.Sequential(*layers, nn.Linear(16, CLASSES)))
    models = import_torchvision("torchvision.models")
    return with_varied_outputs(models.get_model(name, weights=None, num_classes=CLASSES))


def with_varied_outputs(built: nn.Module) -> nn.Module:
    """Scale the last layer so that labels differ from image to image: random weights shrink that."""
    built.eval()
    last = [module for module in built.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    examples = torch.randn(8, 3, SIDE, SIDE) / 2 + torch.linspace(-1.5, 2, 8).view(8, 1, 1, 1)
    with torch.no_grad():
        last.weight *= 2 / built(examples).std(dim=0).mean()
        last.bias -= built(examples).mean(dim=0)
    return built


def probabilities_of(built: nn.Module, images: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Run torch itself, on pixels normalised as torchvision does."""
    values = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    ) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        found: np.ndarray[Any, np.dtype[np.float32]] = torch.softmax(built(values), dim=1).numpy()
    return found


def export(
    built: nn.Module, path: Path, *, opset: int, exporter: str, batch: int | None, half: bool = False
) -> None:
    """Export as users do: by tracing or by dynamo, with a fixed batch or any."""
    example = torch.zeros(batch or 2, 3, SIDE, SIDE, dtype=torch.float16 if half else torch.float32)
    options: dict[str, Any] = {
        "dynamo": exporter == "dynamo",
        "opset_version": opset,
        "input_names": ["input"],
        "output_names": ["logits"],
    }
    if exporter == "dynamo":
        options |= {"external_data": True, "verbose": False}
        if batch is None:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif batch is None:
        options["dynamic_axes"] = {"input": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn of their own internals
        torch.onnx.export(built.half() if half else built, (example,), str(path), **options)


def import_export(path: Path) -> ImportResult:
    """Import with labels and torchvision's normalisation."""
    labels = path.with_name("labels.txt")
    labels.write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    settings = ImportSettings(labels=labels, mean=MEAN, std=STD)
    return import_model(path, "foreign", Repository(path.parent / "repository"), settings)


def served(result: ImportResult, images: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Run the published file as a server does."""
    engine = OnnxEngine.load(result.bundle.model_file, CPU, threads=1, max_batch_size=len(images))
    try:
        return engine.run(images).probabilities
    finally:
        engine.close()


def test_dynamo(images: Pixels, tmp_path: Path) -> None:
    """Today's exporter, at opset 22, with any batch and its weights outside of the file."""
    built = network("small")
    expected = probabilities_of(built, images)
    assert np.ptp(expected, axis=0).max() > 0.05  # a constant network would prove nothing
    export(built, tmp_path / "network.onnx", opset=22, exporter="dynamo", batch=None)

    result = import_export(tmp_path / "network.onnx")

    assert np.abs(served(result, images) - expected).max() < 1e-5
    assert result.batch == "dynamic"
    assert result.foreign.has_embedding
    assert result.foreign.source.producer.startswith("pytorch 2.")
    assert len(result.foreign.source.files) == 2


@pytest.mark.data
def test_real_weights_keep_their_accuracy(data_root: Path, tmp_path: Path) -> None:
    """SqueezeNet 1.1, traced at opset 11 for one image: 63 photographs of 100, as with recipe `imagenet`."""
    weights, sample = (
        data_root / "weights" / "squeezenet1_1_caffe-bea84200.pth",
        data_root / "imagenet-sample",
    )
    if not weights.is_file() or not sample.is_dir():
        pytest.skip(f"no ImageNet weights or pictures in {data_root}")
    built = import_torchvision("torchvision.models").squeezenet1_1()
    built.load_state_dict(torch.load(weights, weights_only=True))
    path = tmp_path / "squeezenet.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            built.eval(), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, opset_version=11
        )
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(synsets()))
    for file in sample.glob("*.JPEG"):
        folder = tmp_path / "photos" / file.name.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file)
    settings = ImportSettings(
        labels=labels, mean=MEAN, std=STD, fit="crop", crop_fraction=0.875, images=tmp_path / "photos"
    )

    bundle = import_model(path, "squeezenet", Repository(tmp_path / "repository"), settings).bundle

    scores = evaluate_bundle(bundle.folder, "folder", tmp_path / "photos")
    assert scores.metrics["images"] == 100
    assert abs(scores.metrics["correct"] - 63) <= 1
    assert bundle.manifest.measured().images == 50  # the other half fitted the temperature


def test_half_precision(images: Pixels, tmp_path: Path) -> None:
    """FP16 in and out differs from torch in FP32 by its rounding."""
    built = network("squeezenet1_1")
    expected = probabilities_of(built, images)
    export(built, tmp_path / "network.onnx", opset=17, exporter="tracing", batch=None, half=True)

    result = import_export(tmp_path / "network.onnx")

    assert np.abs(served(result, images) - expected).max() < 1e-2
    assert result.foreign.image.dtype == np.float16


def test_timm(images: Pixels, tmp_path: Path) -> None:
    """A vision transformer of timm, exported for one image: its batch is mixed into other axes."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install timm")
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    built = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=SIDE).eval()
    with_varied_outputs(built)
    expected = probabilities_of(built, images)
    export(built, tmp_path / "network.onnx", opset=17, exporter="tracing", batch=1)

    result = import_export(tmp_path / "network.onnx")

    assert np.abs(served(result, images) - expected).max() < 1e-5
