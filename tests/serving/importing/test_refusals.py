"""What cannot be imported is refused in one sentence that names the thing and the remedy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving.bundle import Repository
from serving.errors import LenserveError, UnsupportedModel, UsageError
from serving.importing.importer import import_model
from serving.importing.settings import ImportSettings
from tests.serving.importing import foreign_files as files
from tests.serving.importing.foreign_files import CLASSES, MEAN, SIDE, STD, layers, weights, write

node = helper.make_node


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def refuse(repository: Repository, path: Path, labels: Path | None, **settings: object) -> str:
    """Import, which must fail without publishing; return the message."""
    chosen = {"labels": labels, "mean": MEAN, "std": STD, **settings}
    with pytest.raises((UnsupportedModel, UsageError)) as refused:
        import_model(path, "foreign", repository, ImportSettings(**chosen))  # type: ignore[arg-type]
    assert not repository.models()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"",
            "(0 bytes) cannot be read as ONNX: it is truncated, or not an ONNX file: copy or export it again",
        ),
        (b"\x00" * 100, "(100 bytes) cannot be read as ONNX: it is truncated"),
        (b"PK\x03\x04 checkpoint", "it is a zip archive, such as torch's .pt"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch the file with `git lfs pull`"),
        (b"<!DOCTYPE html>", "it is a web page"),
    ],
)
def test_files_that_are_not_onnx(
    content: bytes, reason: str, repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """Also files that are often mistaken for one."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert reason in refuse(repository, path, labels)


def test_a_missing_file(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """The command line is wrong, not the file."""
    message = refuse(repository, tmp_path / "none.onnx", labels)
    assert message.endswith("none.onnx: no such file; name the ONNX file to import")


def test_every_truncation_of_a_file_is_refused(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """Cut at 40 places; none crashes, hangs or publishes."""
    content = files.plain(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:length])
        refuse(repository, path, labels)


def test_damaged_bytes_never_escape_as_another_error(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """Forty files with a few changed bytes: imported, or refused by an error of this project."""
    content = np.frombuffer(files.plain(tmp_path / "whole.onnx").read_bytes(), np.uint8)
    random = np.random.default_rng(3)
    path = tmp_path / "damaged.onnx"
    for _ in range(40):
        damaged = content.copy()
        damaged[random.integers(0, len(content), 3)] = random.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            import_model(path, "damaged", repository, ImportSettings(labels=labels, mean=MEAN, std=STD))
        except LenserveError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_weights_that_are_missing_or_cut(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """The file of the weights is named."""
    path = tmp_path / "outside.onnx"
    model = onnx.load(files.plain(tmp_path / "plain.onnx"))
    onnx.save(model, path, save_as_external_data=True, location="outside.data", size_threshold=0)
    weights_file = path.with_name("outside.data")
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    assert "cannot be read from outside.data" in refuse(repository, path, labels)
    weights_file.unlink()
    message = refuse(repository, path, labels)
    assert "keeps its weights in 'outside.data', which cannot be read: No such file or directory" in message


def test_weights_outside_of_the_folder_are_not_read(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """A file from elsewhere must not make the program read other files."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "outside.onnx"
    model = onnx.load(files.plain(tmp_path / "plain.onnx"))
    onnx.save(model, path, save_as_external_data=True, location="outside.data", size_threshold=0)
    (folder / "outside.data").rename(tmp_path / "secret.data")
    path.write_bytes(path.read_bytes().replace(b"outside.data", b"../secret.da"))
    (tmp_path / "secret.da").symlink_to(tmp_path / "secret.data")
    assert "'../secret.da'" in refuse(repository, path, labels)


def no_outputs(model: onnx.ModelProto) -> None:
    """Remove the outputs."""
    del model.graph.output[:]


def zip_map() -> list[onnx.NodeProto]:
    """End as scikit-learn's converter does."""
    return [
        *layers(result="scores"),
        node("ZipMap", ["scores"], ["logits"], domain="ai.onnx.ml", classlabels_int64s=list(range(CLASSES))),
    ]


SEQUENCE = helper.make_value_info(
    "logits",
    helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    ),
)

Make = Callable[[Path], Path]

GRAPHS: dict[str, tuple[Make, str]] = {
    "no outputs": (
        lambda path: write(path, layers(), weights(), change=no_outputs),
        "has no outputs: export it with its logits as output",
    ),
    "two inputs": (
        lambda path: write(
            path,
            [node("Add", ["x", "y"], ["sum"]), *layers("sum")],
            weights(),
            inputs=[value("x", 1, 3, SIDE, SIDE), value("y", 1, 3, SIDE, SIDE)],
        ),
        "the model has 2 inputs ('x', 'y'); a classifier of images has one",
    ),
    "no image": (
        lambda path: write(
            path,
            [node("Gemm", ["x", "dense.weight"], ["logits"], transB=1)],
            weights(),
            shape=("N", files.FILTERS),
        ),
        "input 'x' has shape ['N', 8]; an image classifier takes (batch, channels, height, width) or",
    ),
    "four channels": (
        lambda path: write(path, layers(), weights(), shape=(1, 4, SIDE, SIDE)),
        "input 'x' has shape [1, 4, 16, 16], not NCHW or NHWC with 1 or 3 channels",
    ),
    "int64 input": (
        lambda path: write(
            path,
            [node("Cast", ["x"], ["pixels"], to=TensorProto.FLOAT), *layers("pixels")],
            weights(),
            kind=TensorProto.INT64,
            outputs=[value("logits", "N", CLASSES)],
        ),
        "input 'x' is int64; an image is float, float16, double or uint8",
    ),
    "huge images": (
        lambda path: write(path, layers(), weights(), shape=(1, 3, 16, 5000)),
        "input 'x' has 16 x 5000 pixels, the limit of a side is 4096",
    ),
    "detector": (
        lambda path: write(
            path,
            [*layers()[:2], node("Reshape", ["relu", "boxes"], ["logits"])],
            {**weights(), "boxes": np.array([0, files.FILTERS, -1], np.int64)},
            outputs=[value("logits", "N", files.FILTERS, 64)],
        ),
        "which has shape (batch, classes): 'logits' has shape [8, 8, 64] of float32, as a detector's",
    ),
    "segmentation": (
        lambda path: write(
            path, layers()[:1], {**weights()}, outputs=[value("maps", "N", files.FILTERS, 8, 8)]
        ),
        "as a segmentation's",
    ),
    "scikit-learn's ZipMap": (
        lambda path: write(path, zip_map(), weights(), outputs=[SEQUENCE]),
        "is a sequence, as scikit-learn's converter writes: export it with options={'zipmap': False}",
    ),
    "several labels at once": (
        lambda path: write(
            path, [*layers(result="scores"), node("Sigmoid", ["scores"], ["logits"])], weights()
        ),
        "output 'logits' has 5 independent probabilities (its last operator is Sigmoid)",
    ),
    "softmax over the batch": (
        lambda path: write(
            path, [*layers(result="scores"), node("Softmax", ["scores"], ["logits"], axis=0)], weights()
        ),
        "output 'logits' is a softmax, but its 5 values do not sum to 1",
    ),
    "not finite": (
        lambda path: write(path, [*layers(result="scores"), node("Log", ["scores"], ["logits"])], weights()),
        "output 'logits' is NaN or infinite for ",
    ),
    "unknown operator": (
        lambda path: write(
            path,
            [*layers(result="scores"), node("Mystery", ["scores"], ["logits"], domain="ai.acme")],
            weights(),
        ),
        "cannot load the model: ",
    ),
    "a circle": (
        lambda path: write(
            path,
            [*layers()[:2], node("Relu", ["logits"], ["again"]), node("Relu", ["again"], ["logits"])],
            weights(),
        ),
        "cannot load the model: ",
    ),
    "a layer without weights": (
        lambda path: write(path, [node("Gemm", ["x"], ["logits"])], weights()),
        "cannot load the model: ",
    ),
    "two outputs": (
        lambda path: write(
            path,
            [*layers(), node("Neg", ["logits"], ["auxiliary"])],
            weights(),
            outputs=[value("logits", "N", CLASSES), value("auxiliary", "N", CLASSES)],
        ),
        "can hold the classes: logits (5 values), auxiliary (5 values); say which by --output-name",
    ),
    "any size": (
        lambda path: write(path, layers(), weights(), shape=("N", 3, "H", "W")),
        "the file takes images of any size: say by --size",
    ),
    "any layout": (
        lambda path: write(
            path, [node("Neg", ["x"], ["pixels"]), *layers("pixels")], weights(), shape=("N", 3, 3, 3)
        ),
        "can be NCHW (torch) or NHWC (Keras): say which by --layout",
    ),
    "opset of the future": (
        lambda path: files.plain(path, opset=99),
        "cannot load the model: ",
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs_that_are_not_one_image_to_one_label(
    case: str, repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """The tensor is named, with its shape."""
    make, reason = GRAPHS[case]
    assert reason in refuse(repository, make(tmp_path / "model.onnx"), labels)


SETTINGS: dict[str, tuple[dict[str, object], str]] = {
    "no normalisation": (
        {"mean": None, "std": None},
        "--mean and --std are needed: the file does not say how pixels are normalised",
    ),
    "half a normalisation": ({"std": None}, "--mean and --std belong together: give both, or none"),
    "two means": ({"mean": (0.5, 0.5)}, "--mean has 2 values, input 'x' has 3 channels"),
    "means of bytes": (
        {"mean": (123.7, 116.8, 103.9), "std": (1.0,)},
        "--mean 123.7,116.8,103.9 --std 1: these are of pixels in 0..255; add --pixels 0-255",
    ),
    "no deviation": ({"std": (0.0,)}, "--std must be above 0, got 0"),
    "another size": (
        {"size": (32, 32)},
        "--size 32x32: the file takes 16 x 16 pixels (height x width): leave it out",
    ),
    "another layout": ({"layout": "NHWC"}, "input 'x' has shape ['?', 3, 16, 16], not NHWC"),
    "another output": ({"output_name": "scores"}, "--output-name scores: the file's outputs are 'logits'"),
    "not probabilities": (
        {"output": "probabilities"},
        "--output probabilities: the 5 values of output 'logits' do not sum to 1",
    ),
    "not a sigmoid": ({"output": "sigmoid"}, "--output sigmoid: output 'logits' has 5 values"),
    "a crop without a fit": (
        {"crop_fraction": 0.875},
        "--crop-fraction 0.875 has no effect without --fit crop",
    ),
    "no labels": (
        {"labels": None},
        "--labels is needed: the file does not name the 5 classes of output 'logits'",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_missing_or_contradict_the_file(
    case: str, repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """Each names its option."""
    settings, reason = SETTINGS[case]
    path = files.plain(tmp_path / "plain.onnx")
    message = refuse(repository, path, **{"labels": labels, **settings})  # type: ignore[arg-type]
    assert message.startswith(reason)


def test_uint8_pixels_take_no_normalisation(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """The graph scales them itself."""
    path = files.raw_pixels(tmp_path / "raw.onnx")
    assert refuse(repository, path, labels) == "input 'x' takes uint8 pixels: leave --mean and --std out"


def test_a_fixed_batch_that_cannot_be_freed(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """Batch 1 would run image by image; batch 2 cannot."""

    def average_over_the_batch(model: onnx.ModelProto) -> None:
        model.graph.node.append(node("ReduceMean", ["scores"], ["mean"], axes=[0], keepdims=1))
        model.graph.node.append(node("Sub", ["scores", "mean"], ["logits"]))

    path = write(
        tmp_path / "mixing.onnx",
        layers(result="scores"),
        weights(),
        shape=(2, 3, SIDE, SIDE),
        change=average_over_the_batch,
    )
    message = refuse(repository, path, labels)
    assert message.startswith(
        "the file, exported with batch 2, gives other results in batches of 5 (made dynamic: "
    )
    assert message.endswith("export it with a dynamic batch axis")
