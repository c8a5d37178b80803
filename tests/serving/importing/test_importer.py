"""Imported versions give the probabilities of the file itself, whatever program wrote it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from serving.bundle import Bundle, Repository
from serving.bundle.images import Pixels
from serving.bundle.measures import softmax
from serving.bundle.store import Store
from serving.bundle.stored_repository import StoredRepository
from serving.client import AsyncClient
from serving.engine.base import Output
from serving.engine.onnx import OnnxEngine
from serving.errors import UnsupportedModel
from serving.importing.importer import ImportResult, import_model
from serving.importing.settings import ImportSettings
from serving.importing.summary import notes, to_json
from tests.servers import Serve
from tests.serving.bundle.fake_s3 import FakeS3
from tests.serving.engines import CPU
from tests.serving.importing import foreign_files as files
from tests.serving.importing.foreign_files import MEAN, STD, nchw, reference

Feed = Callable[[Pixels], npt.NDArray[np.generic]]
TOLERANCE = 1e-5


def run(bundle: Bundle, images: Pixels) -> Output:
    """Run a version as a server does, in one batch."""
    engine = OnnxEngine.load(bundle.model_file, CPU, threads=1, max_batch_size=len(images))
    try:
        return engine.run(images)
    finally:
        engine.close()


def import_file(repository: Repository, path: Path, labels: Path | None, **settings: object) -> ImportResult:
    """Import as `foreign`, normalised as torchvision's networks unless the settings say otherwise."""
    chosen = {"labels": labels, "mean": MEAN, "std": STD, **settings}
    return import_model(path, "foreign", repository, ImportSettings(**chosen))  # type: ignore[arg-type]


def keras_pixels(images: Pixels) -> npt.NDArray[np.generic]:
    """Pixels in -1..1, NHWC."""
    return (images / 127.5 - 1).astype(np.float32)


Case = tuple[Callable[[Path], Path], Feed, dict[str, object], str, str]

CASES: dict[str, Case] = {
    "torch": (files.plain, nchw, {}, "dynamic", "features"),
    "torch with batch 1": (lambda path: files.plain(path, batch=1), nchw, {}, "made dynamic", "features"),
    "torch with batch 3": (lambda path: files.plain(path, batch=None), nchw, {}, "dynamic", "features"),
    "Keras": (files.keras, keras_pixels, {"mean": (0.5,), "std": (0.5,)}, "dynamic", "features"),
    "model zoo": (files.model_zoo, nchw, {}, "made dynamic", "relu"),
    "double": (files.double, lambda images: nchw(images, np.float64), {}, "dynamic", "features"),
    "uint8": (files.raw_pixels, lambda images: images, {"mean": None, "std": None}, "dynamic", "features"),
    "quantised": (files.quantized, nchw, {}, "dynamic", "features.back"),
    "mixed batch": (files.mixes_its_batch, nchw, {}, "one by one", "attended"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_version_gives_the_probabilities_of_the_file(
    case: str, repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """Seven images in one batch give what each alone gives in the file, after preprocessing by numpy."""
    make, feed, settings, batch, embedding = CASES[case]
    path = make(tmp_path / "foreign.onnx")
    expected = reference(path, images, feed)["logits"].reshape(len(images), -1)  # (N, K)
    if case != "Keras":  # its output is a softmax
        expected = softmax(expected)

    result = import_file(repository, path, labels, **settings)

    found = run(result.bundle, images)
    assert np.abs(found.probabilities - expected).max() < TOLERANCE
    assert np.isfinite(found.embedding).all()
    assert found.embedding.shape == (len(images), files.FILTERS)
    assert result.bundle.manifest.provenance.imported is not None
    assert result.bundle.manifest.provenance.imported.batch == batch
    assert result.bundle.manifest.provenance.imported.embedding == embedding
    assert repository.read("foreign", 1) == result.bundle


def test_an_operator_set_that_onnx_runtime_lacks_is_converted(
    repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """A file of opset 6 gives what the same network of today gives; the manifest has the file's opset."""
    expected = softmax(reference(files.plain(tmp_path / "today.onnx"), images, nchw)["logits"])

    bundle = import_file(repository, files.caffe(tmp_path / "caffe.onnx"), labels).bundle

    assert np.abs(run(bundle, images).probabilities - expected).max() < TOLERANCE
    assert bundle.manifest.provenance.imported is not None
    assert bundle.manifest.provenance.imported.opset == 6


def test_the_embedding_is_what_the_last_layer_gets(
    repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """It is the tensor itself; before a convolution, the mean of its maps."""

    def also(name: str) -> Callable[[Path], Path]:
        def change(path: Path) -> Path:
            model = onnx.load(path)
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
            onnx.save(model, path.with_name("with_features.onnx"))
            return path.with_name("with_features.onnx")

        return change

    dense, convolved = files.plain(tmp_path / "dense.onnx"), files.model_zoo(tmp_path / "convolved.onnx")
    features = reference(also("features")(dense), images, nchw)["features"]  # (N, D)
    maps = reference(also("relu")(convolved), images, nchw)["relu"].astype(np.float64)  # (N, D, H, W)

    of_dense = run(import_file(repository, dense, labels).bundle, images).embedding
    of_convolved = run(import_file(repository, convolved, labels).bundle, images).embedding

    assert np.allclose(of_dense, features, atol=1e-5)
    assert np.allclose(of_convolved, maps.mean(axis=(2, 3)), atol=1e-5)


def test_fp16_stays_close_and_has_a_wider_tolerance(
    repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """Probabilities still sum to 1 in float32, and a GPU may round differently than this CPU."""
    path = files.half(tmp_path / "half.onnx")
    expected = softmax(
        reference(path, images, lambda each: nchw(each, np.float16))["logits"].astype(np.float32)
    )

    bundle = import_file(repository, path, labels).bundle

    found = run(bundle, images).probabilities
    assert np.abs(found - expected).max() < 2e-3
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-6
    assert bundle.manifest.golden_tolerance == 2e-2


def test_a_sigmoid_is_the_second_of_two_labels(
    repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """One probability becomes two."""
    path = files.sigmoid(tmp_path / "sigmoid.onnx")
    two = tmp_path / "two.txt"
    two.write_text("no\nyes\n")
    second = reference(path, images, nchw)["logits"]  # (N, 1)

    result = import_file(repository, path, two)

    found = run(result.bundle, images).probabilities
    assert np.allclose(found, np.concatenate([1 - second, second], axis=1), atol=TOLERANCE)
    assert result.foreign.scores.kind == "sigmoid"
    assert any("one value, high for the second label, 'yes'" in line for line in notes(result))


def test_random_outputs_are_explained(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """A batch axis would not help: the file differs from itself."""
    path = files.plain(tmp_path / "plain.onnx")
    model = onnx.load(path)
    (output,) = [node for node in model.graph.node if "logits" in node.output]
    output.output[0] = "certain"
    noise = onnx.helper.make_node("RandomNormalLike", ["certain"], ["noise"], scale=3.0)
    model.graph.node.extend([noise, onnx.helper.make_node("Add", ["certain", "noise"], ["logits"])])
    onnx.save(model, path)
    with pytest.raises(UnsupportedModel, match="RandomNormalLike gives other values each time: export the"):
        import_file(repository, path, labels)


def test_ultralytics_needs_no_option(repository: Repository, images: Pixels, tmp_path: Path) -> None:
    """Its metadata name the labels, and its pixels are in 0..1."""
    path = files.ultralytics(tmp_path / "best.onnx")
    expected = reference(path, images, lambda each: (each / 255).astype(np.float32).transpose(0, 3, 1, 2))[
        "logits"
    ]

    result = import_file(repository, path, None, mean=None, std=None)

    assert np.abs(run(result.bundle, images).probabilities - expected).max() < TOLERANCE
    manifest = result.bundle.manifest
    assert manifest.labels == tuple(f"class {number}" for number in range(files.CLASSES))
    assert (manifest.geometry.fit, manifest.geometry.crop_fraction) == ("crop", 1.0)
    assert result.foreign.assumed == ()


def test_neighbours_of_hugging_face_answer_every_question(
    repository: Repository, images: Pixels, tmp_path: Path
) -> None:
    """Optimum leaves every axis open; the first convolution shows the layout, its JSON files the rest."""
    path = files.write(
        tmp_path / "model.onnx",
        files.layers(),
        files.weights(),
        shape=("batch", "channels", "height", "width"),
    )
    processor = {
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 2,
        "size": {"height": files.SIDE, "width": files.SIDE},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    names = {str(number): f"class {number}" for number in range(files.CLASSES)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    expected = softmax(reference(path, images, nchw)["logits"])

    result = import_file(repository, path, None, mean=None, std=None)

    assert np.abs(run(result.bundle, images).probabilities - expected).max() < TOLERANCE
    assert result.foreign.assumed == ()
    assert result.foreign.origin == ("preprocessor_config.json", "config.json")


def test_weights_in_another_file_come_into_the_bundle(
    repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """The bundle is one file, and its manifest names the digests of both."""
    path = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(files.plain(tmp_path / "plain.onnx")),
        path,
        save_as_external_data=True,
        location="outside.data",
        size_threshold=0,
    )
    expected = softmax(reference(path, images, nchw)["logits"])

    bundle = import_file(repository, path, labels).bundle

    path.with_name("outside.data").unlink()
    assert np.abs(run(bundle, images).probabilities - expected).max() < TOLERANCE
    assert bundle.manifest.provenance.imported is not None
    assert set(bundle.manifest.provenance.imported.files) == {"outside.onnx", "outside.data"}


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_channels_and_ranges_are_as_the_options_say(
    order: str, repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """Caffe's networks take blue first, and means of pixels in 0..255."""
    path = files.plain(tmp_path / "caffe.onnx")
    means = np.array([103.939, 116.779, 123.68])

    def feed(each: Pixels) -> npt.NDArray[np.generic]:
        ordered = each[..., ::-1] if order == "BGR" else each
        return np.ascontiguousarray(((ordered - means) / 100).astype(np.float32).transpose(0, 3, 1, 2))

    expected = softmax(reference(path, images, feed)["logits"])

    bundle = import_file(
        repository, path, labels, mean=tuple(means / 255), std=(100 / 255,), bgr=order == "BGR"
    ).bundle

    assert np.abs(run(bundle, images).probabilities - expected).max() < TOLERANCE


def test_tensors_named_as_a_bundles_do_not_collide(
    repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """The file's own `image`, `probabilities` and `embedding` are other tensors than the bundle's."""
    names = {"x": "image", "maps": "embedding", "logits": "probabilities", "features": "lenserve_flat"}
    model = onnx.load(files.plain(tmp_path / "plain.onnx"))
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "image", "probabilities"
    path = tmp_path / "named.onnx"
    onnx.save(model, path)
    expected = softmax(reference(path, images, nchw)["probabilities"])

    bundle = import_file(repository, path, labels).bundle

    assert np.abs(run(bundle, images).probabilities - expected).max() < TOLERANCE


async def test_an_imported_model_is_served(
    serve: Serve, repository: Repository, labels: Path, images: Pixels, tmp_path: Path
) -> None:
    """A server loads it, proves it by its golden examples, and answers with the file's own label."""
    path = files.plain(tmp_path / "plain.onnx")
    expected = softmax(reference(path, images, nchw)["logits"])
    import_file(repository, path, labels)

    async with serve() as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
        answers = [await client.classify(image, model="foreign") for image in images]

    assert [answer.top.index for answer in answers] == expected.argmax(axis=1).tolist()
    assert [answer.top.probability for answer in answers] == pytest.approx(
        expected.max(axis=1), abs=TOLERANCE
    )


def test_nothing_is_published_if_the_import_fails(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """The repository is not even created."""
    path = files.plain(tmp_path / "plain.onnx")
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(UnsupportedModel):
        import_file(repository, path, labels)

    assert not repository.root.exists()


def test_an_import_into_an_object_store_names_its_url(labels: Path, tmp_path: Path) -> None:
    """Not the folder of the copy, which is of no use to others."""
    s3 = FakeS3()
    store = Store("s3://bucket/models", lambda _url: (s3, "bucket/models"))
    repository = StoredRepository(store, tmp_path / "cache")

    result = import_file(repository, files.plain(tmp_path / "plain.onnx"), labels)

    assert to_json(result)["path"] == result.location == "s3://bucket/models/foreign/1"


def test_an_import_is_reproducible(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """The same file and options give the same bytes, and only the time differs in the manifest."""
    path = files.model_zoo(tmp_path / "zoo.onnx")
    first, second = (import_file(repository, path, labels).bundle for _ in range(2))
    assert first.manifest.files == second.manifest.files
    assert first.manifest.provenance.recipe_digest == second.manifest.provenance.recipe_digest
