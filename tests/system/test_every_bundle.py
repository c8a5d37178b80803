"""Every version of a repository, served by one server over gRPC, gives its published results.

    LENSERVE_REPOSITORY=repository pytest tests/system/test_every_bundle.py

checks a whole repository without writing to it. Without the variable, a small one is created: LeNet-5,
trained on digits for three epochs, and two versions of a network that needs no training.
"""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.bundle import MODEL_FILE, Bundle, Repository, apply_geometry, variant_file
from serving.client.client import Client, Prediction
from serving.pb.inference import grpc_service_pb2 as pb
from tests.colours import Publish
from tests.servers import StartServer
from training.evaluation.onnx_session import open_session, run

VARIABLE = "LENSERVE_REPOSITORY"
TIMEOUT_S = 120
LOADING_S = 500  # of all versions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The repository of the environment variable, or one with a briefly trained LeNet-5."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Repository(Path(named))
    folder = tmp_path_factory.mktemp("trained")
    settings = ["training.epochs=3", "gates.min_accuracy=0.9", "variants.min_int8_speedup=0.01"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    places = ["--repository", str(folder / "repository"), "--run-dir", str(folder / "run")]
    command = [sys.executable, "-m", "training", "run", "lenet5-digits", *overrides, *places]
    subprocess.run(command, check=True, capture_output=True)
    return Repository(folder / "repository")


@pytest.fixture
def bundles(trained: Repository, repository: Repository, publish: Publish) -> list[Bundle]:
    """All versions, in the served repository and each behind an alias: without, only the newest is loaded."""
    link_all(trained, repository)
    if VARIABLE not in os.environ:
        publish("colours")
        publish("colours", rotate=1)
    found = [(model, version) for model in repository.models() for version in repository.versions(model)]
    assert found, f"{trained.root} holds no model"
    for model, version in found:
        repository.set_alias(model, f"v{version}", version)
    return [repository.read(model, version) for model, version in found]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_every_bundle_answers_as_it_was_published(
    bundles: list[Bundle],
    precision: str,
    start_server: StartServer,
    subtests: pytest.Subtests,
) -> None:
    """Golden tensors give golden probabilities; golden pictures give every label of the served file."""
    server = start_server("--precision", precision, "--engine-threads", "1", ready_within_s=LOADING_S)
    with Client(server.grpc, timeout_s=TIMEOUT_S) as client, grpc.insecure_channel(server.grpc) as channel:
        for bundle in bundles:
            with subtests.test(msg=f"{bundle.model}@{bundle.version}"):
                check_tensors(channel, bundle, precision)
                check_pictures(client, bundle, precision)


def check_tensors(channel: grpc.Channel, bundle: Bundle, precision: str) -> None:
    """The Open Inference Protocol takes the network's input: it reproduces golden.npz."""
    golden = bundle.golden()
    request = pb.ModelInferRequest(model_name=bundle.model, model_version=str(bundle.version))
    request.inputs.add(name="image", datatype="UINT8", shape=golden.images.shape)
    request.raw_input_contents.append(golden.images.tobytes())
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelInferResponse.FromString,
    )
    response = infer(request, timeout=TIMEOUT_S)
    answered = np.frombuffer(response.raw_output_contents[0], np.float32)
    difference = golden.largest_difference(answered.reshape(golden.probabilities.shape))  # (G, K)
    assert difference <= tolerance(bundle, precision)
    assert response.model_version == str(bundle.version)


def check_pictures(client: Client, bundle: Bundle, precision: str) -> None:
    """Our API accepts encoded images, and answers like the bundle's geometry and network."""
    manifest, pictures = bundle.manifest, list(bundle.golden().images)
    prepared = np.stack([apply_geometry(picture, manifest.geometry) for picture in pictures])  # (G, H, W, C)
    variant = next((each for each in manifest.variants if each == precision), None)
    file = bundle.folder / (variant_file(variant) if variant else MODEL_FILE)
    expected, _ = run(open_session(file), prepared)  # (G, K)

    model, everything = f"{bundle.model}@{bundle.version}", len(manifest.labels)
    results = list(client.classify_all(pictures, model=model, top_k=everything))
    answers = [result for result in results if isinstance(result, Prediction)]
    assert answers == results
    assert {(answer.model, answer.version) for answer in answers} == {(bundle.model, bundle.version)}
    by_index = [sorted(answer.labels, key=lambda label: label.index) for answer in answers]
    assert all(tuple(label.label for label in row) == manifest.labels for row in by_index)
    answered = np.array([[label.probability for label in row] for row in by_index])  # (G, K)
    assert np.abs(answered - expected).max() <= tolerance(bundle, precision)
    if not variant:  # whose roundings may tip over where two labels are as likely
        assert [answer.top.index for answer in answers] == expected.argmax(axis=1).tolist()


def tolerance(bundle: Bundle, precision: str) -> float:
    """The manifest's tolerance of a probability."""
    variants = {str(name): variant for name, variant in bundle.manifest.variants.items()}
    return (variants.get(precision) or bundle.manifest).golden_tolerance


def link_all(published: Repository, repository: Repository) -> None:
    """Link all versions of one repository into another."""
    for model in published.models():
        (repository.root / model).mkdir()
        for version in published.versions(model):
            link = repository.folder(model, version)
            link.symlink_to(published.folder(model, version).resolve(), target_is_directory=True)
