"""What stands beside a file is used where no option says otherwise."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.importing.hints import Hints, read_hints

HUGGING_FACE = {
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "rescale_factor": 0.00392156862745098,
    "resample": 3,
    "size": {"shortest_edge": 256},
}
TIMM = {
    "architecture": "resnet18",
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


def test_hugging_face(tmp_path: Path) -> None:
    """Optimum writes the image processor and the labels beside model.onnx."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUGGING_FACE))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    assert read_hints(tmp_path / "model.onnx", {}) == Hints(
        origin=("preprocessor_config.json", "config.json"),
        labels=("cat", "dog"),
        labels_file="config.json",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        size=(224, 224),
        fit="crop",
        crop_fraction=0.875,
        interpolation="bicubic",
    )


@pytest.mark.parametrize(("side", "fit", "fraction"), [(224, "crop", 0.875), (384, "stretch", None)])
def test_hugging_face_for_convnext(side: int, fit: str, fraction: float | None, tmp_path: Path) -> None:
    """This processor, also that of its ResNets, crops small images and stretches large ones."""
    processor = {"size": {"shortest_edge": side}, "crop_pct": 0.875, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    hints = read_hints(tmp_path / "model.onnx", {})
    assert (hints.size, hints.fit, hints.crop_fraction) == ((side, side), fit, fraction)
    assert (hints.mean, hints.std) == ((0.0,), (1.0,))


def test_hugging_face_of_old(tmp_path: Path) -> None:
    """Sizes were plain numbers."""
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "do_normalize": true}')
    hints = read_hints(tmp_path / "model.onnx", {})
    assert (hints.size, hints.fit, hints.mean) == ((224, 224), "stretch", None)


def test_timm(tmp_path: Path) -> None:
    """config.json of its hub has the preprocessing of the pretrained weights."""
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    hints = read_hints(tmp_path / "model.onnx", {})
    assert (hints.labels, hints.size, hints.crop_fraction) == (("cat", "dog"), (224, 224), 0.95)
    assert (hints.mean, hints.interpolation) == ((0.485, 0.456, 0.406), "bicubic")


NUMBERS = st.integers() | st.floats() | st.booleans()
JSON = st.recursive(
    st.none() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
SIZES = (
    JSON
    | st.fixed_dictionaries({"height": JSON, "width": JSON})
    | st.fixed_dictionaries({"shortest_edge": JSON})
)
TIMM_VALUES = st.dictionaries(st.sampled_from(sorted(TIMM["pretrained_cfg"])), JSON)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from([*HUGGING_FACE, "crop_pct"]), SIZES),
    st.fixed_dictionaries({"pretrained_cfg": JSON | TIMM_VALUES, "id2label": JSON}),
    st.fixed_dictionaries({"task": st.just("classify"), "imgsz": st.text(max_size=4) | JSON.map(str)}),
)
def test_any_value_is_taken_or_ignored(
    tmp_path: Path, processor: object, config: object, metadata: dict[str, str]
) -> None:
    """JSON of any program never ends an import with a traceback, and sizes are those of images."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "config.json").write_text(json.dumps(config))
    hints = read_hints(tmp_path / "model.onnx", metadata)
    assert hints.size is None or all(1 <= side <= 4096 for side in hints.size)
    assert hints.crop_fraction is None or 0 < hints.crop_fraction <= 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pretrained_cfg": 3, "id2label": 7, "size": "big"}'])
def test_files_of_another_form_are_ignored(content: str, tmp_path: Path) -> None:
    """They may belong to anything else."""
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(content)
    assert read_hints(tmp_path / "model.onnx", {}) == Hints()


def test_values_of_another_range_are_not_taken(tmp_path: Path) -> None:
    """Pixels that are not scaled to 0..1 need other means: they are asked for."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUGGING_FACE | {"do_rescale": False}))
    assert read_hints(tmp_path / "model.onnx", {}).mean is None
