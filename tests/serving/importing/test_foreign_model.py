"""Files beside a model complete it; what they say in another form is asked for, and options come first."""

import json
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Repository
from serving.bundle.images import Pixels
from serving.bundle.measures import softmax
from serving.engine.onnx import OnnxEngine
from serving.errors import UsageError
from serving.importing.importer import import_model
from serving.importing.settings import ImportSettings
from tests.serving.engines import CPU
from tests.serving.importing import foreign_files as files
from tests.serving.importing.foreign_files import SIDE, reference

PROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
}


def model_beside(folder: Path, **values: object) -> Path:
    """Write a model, and an image processor of Hugging Face beside it."""
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | values))
    return files.plain(folder / "model.onnx")


@pytest.mark.parametrize(
    ("values", "question", "answer"),
    [
        (
            {"do_rescale": False},
            "--mean and --std are needed: preprocessor_config.json has do_rescale false, so that its means",
            {"mean": (0.5,), "std": (0.5,)},
        ),
        (
            {"do_pad": True},
            "--fit is needed: preprocessor_config.json has do_pad, which imports cannot do; add --fit stre",
            {"fit": "pad"},
        ),
        (
            {"resample": 4},
            "--interpolation is needed: preprocessor_config.json has resample 4, box; add --inter",
            {"interpolation": "bilinear"},
        ),
    ],
)
def test_what_is_not_taken_is_asked_for(
    *,
    values: dict[str, object],
    question: str,
    answer: dict[str, object],
    repository: Repository,
    labels: Path,
    tmp_path: Path,
) -> None:
    """The question says why, and its answer is enough."""
    path = model_beside(tmp_path, **values)
    with pytest.raises(UsageError) as asked:
        import_model(path, "foreign", repository, ImportSettings(labels=labels))
    assert str(asked.value).startswith(question)
    result = import_model(path, "foreign", repository, ImportSettings(labels=labels, **answer))  # type: ignore[arg-type]
    assert result.foreign.assumed == ()


@pytest.mark.parametrize(("bgr", "order"), [(None, "BGR"), (True, "BGR"), (False, "RGB")])
def test_the_order_of_channels_is_as_the_file_says_unless_an_option_does(
    *,
    bgr: bool | None,
    order: str,
    repository: Repository,
    labels: Path,
    images: Pixels,
    tmp_path: Path,
) -> None:
    """`--no-bgr` contradicts it."""
    path = model_beside(tmp_path, do_flip_channel_order=True)
    step = -1 if order == "BGR" else 1
    expected = softmax(
        reference(
            path,
            images,
            lambda each: np.ascontiguousarray(
                (each[..., ::step] / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2)
            ),
        )["logits"]
    )

    bundle = import_model(path, "foreign", repository, ImportSettings(labels=labels, bgr=bgr)).bundle

    engine = OnnxEngine.load(bundle.model_file, CPU, threads=1, max_batch_size=len(images))
    try:
        assert np.abs(engine.run(images).probabilities - expected).max() < 1e-5
    finally:
        engine.close()
    assert bundle.manifest.provenance.imported is not None
    assert bundle.manifest.provenance.imported.channel_order == order


def test_grey_images_and_bytes_ignore_an_order_of_channels(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """Grey has none, and a graph that takes bytes does the steps of a processor itself."""
    model_beside(tmp_path, do_flip_channel_order=True)
    arrays = files.weights()
    arrays["conv.weight"] = arrays["conv.weight"][:, :1]
    grey = files.write(tmp_path / "grey.onnx", files.layers(), arrays, shape=("N", 1, SIDE, SIDE))
    settings = ImportSettings(labels=labels, mean=(0.5,), std=(0.5,))
    assert import_model(grey, "grey", repository, settings).foreign.normalization.channel_order == "grey"
    raw = files.raw_pixels(tmp_path / "raw.onnx")
    normalization = import_model(raw, "raw", repository, ImportSettings(labels=labels)).foreign.normalization
    assert normalization.channel_order == "RGB"
