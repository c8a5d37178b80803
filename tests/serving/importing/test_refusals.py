"""What cannot be imported is refused in one sentence that names the thing and the remedy."""

import json
import re
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
            "(0 bytes) cannot be read as ONNX: it is truncated, or not an ONNX file: copy it again, or",
        ),
        (b"\x00" * 100, "(100 bytes) cannot be read as ONNX: it is truncated"),
        (b"PK\x03\x04 checkpoint", "it is a zip archive, such as torch's .pt"),
        (b"\x80\x02checkpoint", "it is a pickle, such as torch's old .pt: export the model to ONNX"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, such as Keras's .h5: export the model to ONNX"),
        (b"\x1c\x00\x00\x00TFL3", "it is a file of TensorFlow Lite: export the model to ONNX"),
        (b"\x0b" + bytes(7) + b'{"a":null}', "it is a safetensors file, weights without a network: export"),
        (b"<?xml version='1.0'?>", "it is XML, such as OpenVINO's .xml: export the model to ONNX"),
        (b"\x1f\x8b\x08", "it is compressed: unpack it with gunzip"),
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


def test_a_directory_is_no_file_and_names_those_in_it(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """Exporters of whole folders have several files."""
    folder = tmp_path / "exported"
    folder.mkdir()
    message = f"{folder} is a directory: name the ONNX file to import"
    assert refuse(repository, folder, labels) == message
    path = files.plain(folder / "model.onnx")
    assert refuse(repository, folder, labels) == f"{message}, such as {path}"


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


def future_format(model: onnx.ModelProto) -> None:
    """Name a version of the file format that does not exist yet."""
    model.ir_version = 99


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
        "width, channels); 2 axes are a list of features: export the network from its first layer that takes",
    ),
    "no batch": (
        lambda path: write(
            path,
            [node("Unsqueeze", ["x", "first"], ["images"]), *layers("images")],
            {**weights(), "first": np.array([0], np.int64)},
            shape=(3, SIDE, SIDE),
        ),
        "; 3 axes are one image without a batch: export it with a batch axis, for an example of shape (1, c",
    ),
    "videos": (
        lambda path: write(
            path,
            [node("Squeeze", ["x", "time"], ["images"]), *layers("images")],
            {**weights(), "time": np.array([2], np.int64)},
            shape=("N", 3, 1, SIDE, SIDE),
        ),
        "; 5 axes are videos or volumes: import a network for single images",
    ),
    "a row": (
        lambda path: write(
            path, [node("Identity", ["x"], ["logits"])], {}, shape=(8,), outputs=[value("logits", 8)]
        ),
        "; export a network whose input is such a batch of images",
    ),
    "labels without scores": (
        lambda path: write(
            path,
            [*layers(), node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0)],
            weights(),
            outputs=[value("label", "N", kind=TensorProto.INT64)],
        ),
        "'label' has shape (batch) of int64; whole numbers are labels without scores: export the model with",
    ),
    "an output without a batch": (
        lambda path: write(
            path,
            [*layers(result="scores"), node("Squeeze", ["scores", "first"], ["logits"])],
            {**weights(), "first": np.array([0], np.int64)},
            shape=(1, 3, SIDE, SIDE),
            outputs=[value("logits", CLASSES)],
        ),
        "'logits' has shape (5) of float32; the first axis must be the batch: export the model so that each",
    ),
    "IR version of the future": (
        lambda path: write(path, layers(), weights(), change=future_format),
        "the model has IR version 99, ONNX Runtime ",
    ),
    "a layer that does not fit": (
        lambda path: write(
            path, [*layers()[:-1], node("Gemm", ["features", "dense.weight"], ["logits"])], weights()
        ),
        "cannot load the model: Node () Op (Gemm) [ShapeInferenceError] ",
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
        "'logits' has shape (batch, 8, 64) of float32; 3 axes are boxes of a detector, or a sequence: import",
    ),
    "segmentation": (
        lambda path: write(
            path, layers()[:1], {**weights()}, outputs=[value("maps", "N", files.FILTERS, 8, 8)]
        ),
        "'maps' has shape (batch, 8, 8, 8) of float32; 4 axes are maps of a segmentation or of a network",
    ),
    "scikit-learn's ZipMap": (
        lambda path: write(path, zip_map(), weights(), outputs=[SEQUENCE]),
        "is a sequence; scikit-learn's converter writes sequences: export the model with options={'zipmap'",
    ),
    "several labels at once": (
        lambda path: write(
            path, [*layers(result="scores"), node("Sigmoid", ["scores"], ["logits"])], weights()
        ),
        "output 'logits' has 5 independent probabilities (computed by Sigmoid)",
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
        "the model has the operator ai.acme:Mystery, which ONNX Runtime ",
    ),
    "unknown operator of ONNX": (
        lambda path: write(
            path, [*layers(result="scores"), node("Mystery", ["scores"], ["logits"])], weights()
        ),
        "the model has the operator Mystery, which ONNX Runtime ",
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
        "can hold the classes: logits (5 values), auxiliary (5 values); name one of them by --output-name",
    ),
    "any size": (
        lambda path: write(path, layers(), weights(), shape=("N", 3, "H", "W")),
        "input 'x' takes images of any size: give the one that it was trained on, such as --size 224",
    ),
    "any layout": (
        lambda path: write(
            path, [node("Neg", ["x"], ["pixels"]), *layers("pixels")], weights(), shape=("N", 3, 3, 3)
        ),
        "can be NCHW (torch) or NHWC (Keras): add --layout NCHW or --layout NHWC",
    ),
    "opset of the future": (
        lambda path: files.plain(path, opset=99),
        "the model has opset 99 of ai.onnx, ONNX Runtime ",
    ),
    "an old opset that cannot be converted": (
        lambda path: files.plain(path, opset=6),
        "cannot be converted (N Dimension is a param instead of an int): export it again with opset 11 or",
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs_that_are_not_one_image_to_one_label(
    case: str, repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """The tensor is named, with its shape."""
    make, reason = GRAPHS[case]
    message = refuse(repository, make(tmp_path / "model.onnx"), labels)
    assert reason in message
    assert not re.search(r"ONNXRuntimeError|\.cc\b|\.h:\d", message)  # where a library failed, not why


SETTINGS: dict[str, tuple[dict[str, object], str]] = {
    "no normalisation": (
        {"mean": None, "std": None},
        "--mean and --std are needed: the file does not say how pixels are normalised",
    ),
    "half a normalisation": (
        {"std": None},
        "--mean is given alone, and belongs to --std: add it, such as --std 1",
    ),
    "the other half": (
        {"mean": None},
        "--std is given alone, and belongs to --mean: add it, such as --mean 0",
    ),
    "two means": ({"mean": (0.5, 0.5)}, "--mean has 2 values, input 'x' has 3 channels"),
    "means of bytes": (
        {"mean": (123.7, 116.8, 103.9), "std": (1.0,)},
        "--mean 123.7,116.8,103.9: of pixels in 0..1, it is at most 2: add --pixels 0-255",
    ),
    "deviations of bytes": (
        {"std": (58.4,)},
        "--std 58.4: of pixels in 0..1, it is at most 10: add --pixels 0-255",
    ),
    "means above bytes": (
        {"mean": (1000.0,), "std": (1.0,), "pixels": "0-255"},
        "--mean 1000: of pixels in 0..255, it is at most 510: correct --mean",
    ),
    "fractions taken as bytes": (
        {"pixels": "0-255"},
        "--std 0.229,0.224,0.225: of pixels in 0..255, it is at least 0.996094: leave --pixels out",
    ),
    "a tiny deviation": (
        {"std": (1e-9,)},
        "--std 1e-09: of pixels in 0..1, it is at least 0.00390625: correct --std",
    ),
    "a deviation just below the limit": (
        {"std": (0.0039,)},
        "--std 0.0039: of pixels in 0..1, it is at least 0.00390625: correct --std",
    ),
    "an infinite mean": ({"mean": (float("inf"),)}, "--mean inf: must be finite: use numbers such as 0.5"),
    "a range of nothing": (
        {"mean": None, "std": None, "pixels": "0-255"},
        "--pixels 0-255 is the range of --mean and --std: add these, or leave it out",
    ),
    "no deviation": (
        {"std": (0.0, 0.0, 0.0)},
        "--std 0,0,0: must be above 0, because it divides pixels: --std 1 leaves them unchanged",
    ),
    "a huge size": (
        {"size": (5000, 16)},
        "--size 5000x16: the limit of a side is 4096 pixels: give the size that",
    ),
    "another size": (
        {"size": (32, 32)},
        "--size 32x32: the file takes 16 x 16 pixels (height x width): leave it out",
    ),
    "another layout": (
        {"layout": "NHWC"},
        "--layout NHWC: input 'x' has shape ['?', 3, 16, 16], which is NCHW: leave --layout out",
    ),
    "another output": (
        {"output_name": "scores"},
        "--output-name scores: the file's outputs are 'logits': name ",
    ),
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
    message = "input 'x' takes uint8 pixels, without normalisation: leave --mean and --std out"
    assert refuse(repository, path, labels) == message
    assert refuse(repository, path, labels, std=None) == message


def test_independent_probabilities_are_not_logits(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """A softmax over several sigmoids would be nearly the same for every label."""
    nodes = [*layers(result="scores"), node("Sigmoid", ["scores"], ["logits"])]
    path = write(tmp_path / "several.onnx", nodes, weights())
    assert refuse(repository, path, labels, output="logits").startswith(
        "--output logits: Sigmoid computes output 'logits', so it holds probabilities"
    )


def test_grey_images_have_no_order_of_colours(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """An option without effect is a mistake."""
    arrays = weights()
    arrays["conv.weight"] = arrays["conv.weight"][:, :1]
    path = write(tmp_path / "grey.onnx", layers(), arrays, shape=("N", 1, SIDE, SIDE))
    message = refuse(repository, path, labels, mean=(0.5,), std=(0.5,), bgr=True)
    assert message == "--bgr: input 'x' has 1 channel, grey: leave --bgr out"


def test_labels_of_another_file_that_do_not_fit_name_it(repository: Repository, tmp_path: Path) -> None:
    """It is the JSON beside the ONNX file, not the ONNX file."""
    path = files.plain(tmp_path / "plain.onnx")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    assert refuse(repository, path, None) == (
        f"{config} has 2 labels, output 'logits' has 5 classes: --labels takes one label for each class, "
        "in the order of the output"
    )


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


@pytest.mark.parametrize("batch", [1, "N"])
def test_dropout_in_training_mode_is_named(
    batch: int | str, repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """Another batch axis would not help."""
    arrays = {**weights(), "ratio": np.array(0.5, np.float32), "training": np.ones((), np.bool_)}
    nodes = [*layers(result="scores"), node("Dropout", ["scores", "ratio", "training"], ["logits"])]
    path = write(tmp_path / "training.onnx", nodes, arrays, shape=(batch, 3, SIDE, SIDE))
    message = refuse(repository, path, labels)
    assert message.endswith(": Dropout is in training mode: export it in inference mode (model.eval())")


def test_batch_norm_in_training_mode_is_named(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """It normalises by the images of the batch."""
    arrays: files.Arrays = {**weights(), "one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    normalised = ["normalised", "mean", "variance"]
    norm = node("BatchNormalization", ["x", "one", "zero", "zero", "one"], normalised, training_mode=1)
    path = write(tmp_path / "norm.onnx", [norm, *layers("normalised")], arrays, shape=(2, 3, SIDE, SIDE))
    assert refuse(repository, path, labels).endswith(
        ": BatchNormalization is in training mode: export it in inference mode (model.eval())"
    )


def test_a_network_in_float64_names_float32(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """Its operators are ONNX's own, but ONNX Runtime computes few of them in float64."""
    path = write(tmp_path / "double.onnx", layers(), weights(np.float64), kind=TensorProto.DOUBLE)
    message = refuse(repository, path, labels)
    assert message.startswith("the model computes Conv in float64, which ONNX Runtime ")
    assert message.endswith(" does not: export it in float32 (model.float())")
