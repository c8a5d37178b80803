"""A pretrained network, published with its 1,000 labels and served, classifies real photographs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.bundle import Repository
from serving.client.client import Client, Prediction
from tests.servers import StartServer
from training.data.sources.imagenet import categories, synsets

WEIGHTS = "squeezenet1_1_caffe-bea84200.pth"
SHA256 = "bea84200338b0637f7c00536a0d372f9247ab416eb56a7d27c37929ae58d570f"


@pytest.mark.data
@pytest.mark.timeout(600)
def test_squeezenet_names_imagenet_s_pictures_over_grpc(
    data_root: Path, repository: Repository, tmp_path: Path, start_server: StartServer
) -> None:
    """Top-1 accuracy 63 % and top-5 accuracy 82 %, within one picture; the provenance names the weights."""
    weights, sample = data_root / "weights" / WEIGHTS, data_root / "imagenet-sample"
    if not weights.is_file() or not sample.is_dir():
        pytest.skip(f"no ImageNet weights or pictures in {data_root}")
    places = ["--repository", repository.root, "--run-dir", tmp_path / "run", "--data-root", sample]
    command = [sys.executable, "-m", "training", "run", "imagenet", "--set", f"network.weights={weights}"]
    shorter = ["--set", "variants.precisions=[]", "--set", "report.images=none"]  # which others test
    done = subprocess.run(
        [*command, *shorter, *map(str, places), "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["verdict"] == "published"
    bundle = repository.read("imagenet", 1)
    assert bundle.manifest.labels == categories()
    assert bundle.manifest.embedding_size == 512
    assert bundle.manifest.provenance.pretrained is not None
    assert bundle.manifest.provenance.pretrained.sha256 == SHA256

    files = sorted(sample.glob("*.JPEG"))
    known = dict(zip(synsets(), categories(), strict=True))
    first, among_five = 0, 0
    with Client(start_server().grpc) as client:
        for path, answer in zip(files, client.classify_all(files, model="imagenet", top_k=5), strict=True):
            assert isinstance(answer, Prediction), answer
            labels = [ranked.label for ranked in answer.labels]
            first += labels[0] == known[path.name.split("_")[0]]
            among_five += known[path.name.split("_")[0]] in labels
    assert len(files) == 100
    assert first == bundle.manifest.measured().correct
    assert abs(first - 63) <= 1
    assert abs(among_five - 82) <= 1
