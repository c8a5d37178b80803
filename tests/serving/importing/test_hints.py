"""What stands beside a file is used where no option says otherwise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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
TIMM: dict[str, Any] = {
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
OTHER_KEYS = (
    *("crop_pct", "include_top", "rescale_offset", "do_flip_channel_order", "do_pad", "size_divisor"),
    "image_processor_type",
)
TIMM_VALUES = st.dictionaries(st.sampled_from([*TIMM["pretrained_cfg"], "crop_mode"]), JSON)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from([*HUGGING_FACE, *OTHER_KEYS]), SIZES),
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


def processor_of(folder: Path, **values: object) -> Hints:
    """Write an image processor of Hugging Face beside a model, changed in some values, and read it."""
    (folder / "preprocessor_config.json").write_text(json.dumps(HUGGING_FACE | values))
    return read_hints(folder / "model.onnx", {})


def normalised(hints: Hints, pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what a bundle makes of pixels in 0..1, (N, 3)."""
    assert hints.mean is not None
    assert hints.std is not None
    return (pixels - np.array(hints.mean)) / np.array(hints.std)


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("name", [None, "EfficientNetImageProcessor"])
def test_the_processor_of_efficientnet_divides_twice(
    name: str | None, *, do_normalize: bool, tmp_path: Path
) -> None:
    """`include_top` normalises again, with mean 0; the class does so where the file leaves it out."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.47853944, 0.4732864, 0.47434163])
    values = {"image_mean": mean.tolist(), "image_std": std.tolist(), "do_normalize": do_normalize}
    values |= {"image_processor_type": name} if name else {"include_top": True}
    pixels = np.random.default_rng(0).random((9, 3))
    once = (pixels - mean) / std if do_normalize else pixels

    assert np.allclose(normalised(processor_of(tmp_path, **values), pixels), once / std)

    assert np.allclose(normalised(processor_of(tmp_path, **values | {"include_top": False}), pixels), once)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_an_offset_gives_pixels_around_zero(*, do_normalize: bool, tmp_path: Path) -> None:
    """`rescale_offset` with 1/127.5 gives -1..1, before the normalisation."""
    pixels = np.random.default_rng(0).random((9, 3))
    rescaled = pixels * 255 / 127.5 - 1

    hints = processor_of(tmp_path, rescale_offset=True, rescale_factor=1 / 127.5, do_normalize=do_normalize)

    assert np.allclose(normalised(hints, pixels), (rescaled - 0.5) / 0.25 if do_normalize else rescaled)


@pytest.mark.parametrize(
    "values", [{"do_flip_channel_order": True}, {"image_processor_type": "MobileViTFeatureExtractor"}]
)
def test_a_flipped_order_of_channels_is_bgr(values: dict[str, object], tmp_path: Path) -> None:
    """MobileViT's processor flips, also where the file leaves it out."""
    hints = processor_of(tmp_path, **values)
    assert hints.bgr
    assert hints.mean == (0.5, 0.5, 0.5)
    assert not processor_of(tmp_path).bgr


def test_the_processor_of_mobilevit_only_scales(tmp_path: Path) -> None:
    """Its class has no normalisation, and its files do not name one."""
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "MobileViTImageProcessor",
                "crop_size": {"height": 256, "width": 256},
                "do_center_crop": True,
                "do_flip_channel_order": True,
                "do_normalize": None,
                "resample": 2,
                "size": {"shortest_edge": 288},
            }
        )
    )
    hints = read_hints(tmp_path / "model.onnx", {})
    assert (hints.bgr, hints.mean, hints.std) == (True, (0.0,), (1.0,))
    assert (hints.size, hints.fit, hints.crop_fraction) == ((256, 256), "crop", 256 / 288)
    assert not hints.unclear


PIXELS: dict[str, tuple[dict[str, object], str]] = {
    "not scaled": (
        {"do_rescale": False},
        "has do_rescale false, so that its means are not of pixels in 0..1",
    ),
    "another factor": (
        {"rescale_factor": 1 / 127.5},
        "has rescale_factor 0.007843, so that its means are not",
    ),
    "an offset of versions": (
        {"rescale_offset": True},
        "has rescale_factor 0.003922 with an offset, so that",
    ),
    "an unknown step": (
        {"do_color_quantize": True},
        "has do_color_quantize, which imports cannot do",
    ),
    "a flip before or after": (
        {"do_flip_channel_order": True, "image_mean": [0.485, 0.456, 0.406]},
        "has do_flip_channel_order and a mean or std for each channel, in an unknown order",
    ),
    "twice by nothing": (
        {"include_top": True, "do_normalize": False, "image_std": None},
        "has include_top, which needs image_std",
    ),
}


@pytest.mark.parametrize("case", PIXELS)
def test_normalisation_of_another_form_is_not_taken(case: str, tmp_path: Path) -> None:
    """The reason is kept for the question; the geometry is taken all the same, unless a step is unknown."""
    values, reason = PIXELS[case]
    hints = processor_of(tmp_path, **values)
    assert (hints.mean, hints.std) == (None, None)
    assert hints.unclear["mean"].startswith(f"preprocessor_config.json {reason}")
    assert (hints.fit == "crop") == (case != "an unknown step")


GEOMETRIES: dict[str, tuple[dict[str, object], str]] = {
    "padded": ({"do_pad": True}, "has do_pad, which imports cannot do"),
    "a thumbnail": ({"do_thumbnail": True}, "has do_thumbnail, which imports cannot do"),
    "turned": ({"do_align_long_axis": True}, "has do_align_long_axis, which imports cannot do"),
    "a multiple": ({"size_divisor": 32}, "has size_divisor, which no --fit describes"),
    "in proportion": ({"keep_aspect_ratio": True}, "has keep_aspect_ratio, which no --fit describes"),
    "cropped only": ({"do_resize": False}, "has do_center_crop without do_resize, which no --fit describes"),
    "no size of the crop": ({"crop_size": None}, "has do_center_crop without a crop_size"),
    "two limits": (
        {"size": {"shortest_edge": 800, "longest_edge": 1333}},
        "has a size of shortest_edge, longest_edge, which no --fit describes",
    ),
    "stretched, then cropped": (
        {"size": {"height": 256, "width": 256}},
        "has a size of 256 x 256 and a crop of 224 x 224, which no --fit describes",
    ),
    "cropped, then resized": (  # Perceiver's
        {"size": {"height": 224, "width": 224}, "crop_size": {"height": 256, "width": 256}},
        "has a size of 224 x 224 and a crop of 256 x 256, which no --fit describes",
    ),
    "padded to the crop": (
        {"size": {"shortest_edge": 200}},
        "has a size of 200 x 200 and a crop of 224 x 224, which no --fit describes",
    ),
    "a plain number": (
        {"size": 256},
        "has a crop and a plain number as size, to which some processors stretch images",
    ),
    "not cropped": (
        {"do_center_crop": False},
        "resizes the shorter side to 256 pixels and does not crop",
    ),
    "a fraction and another crop": ({"crop_pct": 0.9}, "has crop_pct with a size that no --fit describes"),
}


@pytest.mark.parametrize("case", GEOMETRIES)
def test_geometry_of_another_form_is_not_taken(case: str, tmp_path: Path) -> None:
    """None of the three fits gives the same pixels; the normalisation is taken all the same."""
    values, reason = GEOMETRIES[case]
    hints = processor_of(tmp_path, **values)
    assert (hints.fit, hints.crop_fraction, hints.size) == (None, None, None)
    assert hints.unclear == {"fit": f"preprocessor_config.json {reason}"}
    assert hints.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "size", "fit", "fraction"),
    [
        ({"do_center_crop": False, "size": {"height": 224, "width": 192}}, (224, 192), "stretch", None),
        ({"size": {"height": 224, "width": 224}}, (224, 224), "stretch", None),  # then the crop keeps all
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, (224, 224), "crop", 0.9),  # PoolFormer
        (
            {"size": {"shortest_edge": 224}, "image_processor_type": "LevitImageProcessor"},
            (224, 224),
            "crop",
            0.875,
        ),
        ({"do_resize": False, "do_center_crop": False}, None, None, None),
    ],
)
def test_geometry_of_hugging_face(
    values: dict[str, object], size: tuple[int, int] | None, fit: str, fraction: float | None, tmp_path: Path
) -> None:
    """Each form of size and crop that a fit describes."""
    hints = processor_of(tmp_path, **values)
    assert (hints.size, hints.fit, hints.crop_fraction) == (size, fit, fraction)
    assert not hints.unclear


def test_other_filters_are_not_taken(tmp_path: Path) -> None:
    """Lanczos is neither bilinear nor bicubic; without a resize, none is needed."""
    hints = processor_of(tmp_path, resample=1)
    assert hints.interpolation is None
    assert hints.unclear == {"interpolation": "preprocessor_config.json has resample 1, Lanczos"}
    assert not processor_of(tmp_path, resample=1, do_resize=False, do_center_crop=False).unclear


@pytest.mark.parametrize(
    ("values", "fit", "fraction", "reason"),
    [
        ({"crop_mode": "center"}, "crop", 0.95, None),
        ({"crop_mode": None}, "crop", 0.95, None),
        ({"crop_mode": "squash", "crop_pct": 1.0}, "stretch", None, None),
        (
            {"crop_mode": "squash"},
            None,
            None,
            "has crop_mode squash and crop_pct 0.95, which no --fit describes",
        ),
        (
            {"crop_mode": "border", "crop_pct": 1.0},
            None,
            None,
            "has crop_mode border and crop_pct 1.0, which no --fit describes",
        ),
    ],
)
def test_crops_of_timm(
    values: dict[str, object], fit: str | None, fraction: float | None, reason: str | None, tmp_path: Path
) -> None:
    """`squash` stretches, and then crops unless it keeps all; `border` pads with the mean colour."""
    cfg = {**TIMM["pretrained_cfg"], **values}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    hints = read_hints(tmp_path / "model.onnx", {})
    assert (hints.fit, hints.crop_fraction) == (fit, fraction)
    assert hints.unclear == ({"fit": f"config.json {reason}"} if reason else {})
    assert hints.mean == (0.485, 0.456, 0.406)


def test_other_filters_of_timm_are_not_taken(tmp_path: Path) -> None:
    """They have names there."""
    cfg = TIMM["pretrained_cfg"] | {"interpolation": "lanczos"}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    hints = read_hints(tmp_path / "model.onnx", {})
    assert hints.interpolation is None
    assert hints.unclear == {"interpolation": "config.json has interpolation lanczos"}
