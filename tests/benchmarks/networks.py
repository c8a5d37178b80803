"""The networks of the table, each as a bundle for our server and as a plain ONNX file for the peers.

LeNet-5 is trained; of the large ones only the shape matters for speed, so their weights are random, with the
statistics of batch norm taken from noise: without them activations would vanish into denormals.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from serving.bundle import (
    MODEL_FILE,
    Bundle,
    Description,
    Geometry,
    Golden,
    Repository,
    write_golden,
)
from tests.benchmarks.description import describe
from training.cli import main as train
from training.export import export as exporting
from training.export import fold_scaling
from training.export.export import OPSET, Classifier, export
from training.networks.torchvision_import import import_torchvision

FOLDER = Path(".bench")
PHOTOGRAPH_FILE = FOLDER / "photograph.jpg"
LENET = "lenet5-digits"
PHOTOGRAPHS = "mobilenet_v3_small"
TENSORS = "resnet18"

_CLASSES = 1000
_SIDE = 224
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _made() -> Path:
    """Where networks are kept: as long as the code that makes them is the same."""
    code = b"".join(Path(file).read_bytes() for file in (exporting.__file__, fold_scaling.__file__, __file__))
    return FOLDER / f"networks-{hashlib.sha256(code).hexdigest()[:12]}"


class Backbone(nn.Module):
    """One of torchvision's networks as the bundle wants it: pixels in, logits and an embedding out."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = import_torchvision("torchvision.models").get_model(name, weights=None)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 -> logits (N, 1000) twice: nobody asks for the embedding here."""
        planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        logits = self.network((planes / 255 - self.mean) / self.deviation)
        return logits, logits * 1.0


class Normalised(nn.Module):
    """The same network for peers, which normalise by themselves: (N, 3, H, W) float32 -> probabilities."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities (N, 1000)."""
        return torch.softmax(self.network(image), dim=1)


def lenet() -> Bundle:
    """LeNet-5 as `make demo` trains it."""
    repository = Repository(_made() / "lenet")
    repository.root.mkdir(parents=True, exist_ok=True)
    arguments = ["run", LENET, "--repository", str(repository.root), "--run-dir", str(FOLDER / "run")]
    if LENET not in repository.models() and train(arguments):
        raise SystemExit(f"{LENET} could not be trained")
    return repository.read(LENET, repository.versions(LENET)[-1])


def backbone_bundle(name: str) -> Bundle:
    """One of torchvision's networks in a repository of its own, made once."""
    repository = Repository(_made() / name)
    repository.root.mkdir(parents=True, exist_ok=True)
    if name not in repository.models():
        repository.publish(name, lambda folder: _write(name, folder))
    return repository.read(name, repository.versions(name)[-1])


def peer_network(bundle: Bundle) -> Path:
    """The ONNX file that peers run: photographs they normalise by themselves."""
    return _made() / f"{PHOTOGRAPHS}-normalised.onnx" if bundle.model == PHOTOGRAPHS else bundle.model_file


def photograph() -> bytes:
    """A JPEG file of 500x375 pixels and about 75 KB: a temple, from scikit-learn."""
    if not PHOTOGRAPH_FILE.exists():
        china = Image.fromarray(load_sample_image("china.jpg"))  # 640x427
        china.resize((562, 375), Image.Resampling.LANCZOS).crop((31, 0, 531, 375)).save(
            PHOTOGRAPH_FILE, quality=90
        )
    return PHOTOGRAPH_FILE.read_bytes()


def _write(name: str, folder: Path) -> Description:
    torch.manual_seed(0)
    backbone = Backbone(name)
    noise = torch.randint(0, 256, (16, _SIDE, _SIDE, 3), dtype=torch.uint8)
    with torch.no_grad():
        backbone.train()(noise)
        for _ in range(20):  # running statistics move by a tenth each time
            backbone(noise)
    backbone.eval()
    geometry = Geometry(height=_SIDE, width=_SIDE, channels=3)
    export(Classifier(backbone, temperature=1.0), geometry, folder / MODEL_FILE)  # type: ignore[arg-type]
    if name == PHOTOGRAPHS:
        _export_normalised(backbone, _made() / f"{name}-normalised.onnx")
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    images = noise[:4].numpy()  # (4, H, W, 3) uint8
    (probabilities,) = session.run(["probabilities"], {"image": images})
    write_golden(Golden(images, np.asarray(probabilities)), folder)
    return describe(name, geometry, sum(each.numel() for each in backbone.parameters()), classes=_CLASSES)


def _export_normalised(backbone: Backbone, path: Path) -> None:
    program = torch.onnx.export(
        Normalised(backbone).eval(),
        (torch.zeros(2, 3, _SIDE, _SIDE),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise SystemExit("the exporter gave no program")
    program.save(path)
