"""The manifest: strict, frozen, and either valid or rejected with a clear message."""

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.bundle import Description, Geometry, Manifest
from serving.errors import BundleError, InvalidManifest
from tests.serving.bundle.publishing import Publish

# The fixture is a value that no example changes.
fuzz = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def manifest(publish: Publish) -> Manifest:
    """The manifest of a published version."""
    return publish().manifest


@pytest.fixture
def document(manifest: Manifest) -> dict[str, Any]:
    """The same as JSON values, for tests to change."""
    document: dict[str, Any] = json.loads(manifest.to_json())
    return document


def parse(document: object) -> Manifest:
    """Parse JSON values as manifest.json."""
    return Manifest.from_json(json.dumps(document).encode())


def at(document: Any, field: str) -> tuple[Any, str]:  # noqa: ANN401 - JSON
    """The object that holds a dotted field, and the last part of its name."""
    *way, last = field.split("/")
    for key in way:
        document = document[key]
    return document, last


def test_json_round_trip(manifest: Manifest) -> None:
    """A manifest that is written and parsed is equal, and gives the same bytes again."""
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text
    assert text.endswith(b"}\n")
    assert "søl".encode() in text


def test_a_version_without_measurements_says_so(document: dict[str, Any]) -> None:
    """An imported version may have no evaluation; asking for its figures names the remedy."""
    document |= {"evaluation": None, "calibration": None}
    manifest = parse(document)
    assert parse(json.loads(manifest.to_json())) == manifest
    with pytest.raises(BundleError, match=r"imported without labelled images.*import it again with --images"):
        manifest.measured()


def test_a_trained_version_does_not_mention_imports(document: dict[str, Any]) -> None:
    """Servers older than the key reject it, so it is left out where it is null."""
    assert document["provenance"].keys() & {"imported", "continued_from"} == set()


def test_a_manifest_is_frozen(manifest: Manifest) -> None:
    """A version is immutable, and so is its manifest."""
    with pytest.raises(ValidationError, match="frozen"):
        manifest.embedding_size = 9  # type: ignore[misc]


FIELDS = [
    "schema_version",
    "labels",
    "geometry",
    "embedding_size",
    "calibration",
    "evaluation",
    "provenance",
    "files",
    "geometry/height",
    "geometry/channels",
    "calibration/temperature",
    "evaluation/accuracy/low",
    "provenance/recipe_digest",
    "provenance/created_at",
    "files/model.onnx/sha256",
    "files/golden.npz/size_bytes",
]


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "schema_version"])
def test_a_missing_key_is_named(field: str, document: dict[str, Any]) -> None:
    """Keys without a default are required."""
    holder, key = at(document, field)
    del holder[key]
    with pytest.raises(InvalidManifest, match=rf"^{field.replace('/', '.')}: missing"):
        parse(document)


@pytest.mark.parametrize("place", ["", "geometry/", "calibration/", "evaluation/accuracy/", "provenance/"])
def test_an_unknown_key_is_named(place: str, document: dict[str, Any]) -> None:
    """Keys of a newer writer are rejected, not ignored."""
    holder, key = at(document, place + "colour_space")
    holder[key] = "sRGB"
    with pytest.raises(
        InvalidManifest, match=f"^unknown key '{place.replace('/', '.')}colour_space'; remove"
    ):
        parse(document)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", 2),
        ("schema_version", "one"),
        ("labels", ["only one"]),
        ("labels", ["a", "b", "a"]),
        ("labels", ["a", "  "]),
        ("geometry/height", 0),
        ("geometry/width", 4097),
        ("geometry/channels", 2),
        ("geometry/fit", "squeeze"),
        ("geometry/crop_fraction", 0),
        ("geometry/background", 256),
        ("calibration/temperature", 0),
        ("calibration/temperature", math.inf),
        ("calibration/temperature", math.nan),
        ("calibration/ece_after", 1.1),
        ("evaluation/images", 0),
        ("evaluation/accuracy/value", math.nan),
        ("provenance/recipe_digest", "abc"),
        ("provenance/recipe_digest", "0" * 64 + "\n"),
        ("provenance/created_at", "yesterday"),
        ("golden_tolerance", 0),
        ("golden_tolerance", 0.5),
        ("files/model.onnx/sha256", "F" * 64),
        ("files/model.onnx/size_bytes", -1),
    ],
)
def test_an_invalid_value_is_rejected_with_its_field(
    field: str, value: object, document: dict[str, Any]
) -> None:
    """The message starts with the path to the field."""
    holder, key = at(document, field)
    holder[key] = value
    with pytest.raises(InvalidManifest, match=rf"^{field.replace('/', '.')}: "):
        parse(document)


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "report/../../x",
        "/etc/passwd",
        "./model.onnx",
        "report//a",
        "report/",
        "",
        ".",
        "..",
        "manifest.json",
        "a\0b",
        "a\nb",
    ],
)
def test_files_stay_inside_the_version(name: str, document: dict[str, Any]) -> None:
    """Only plain relative paths are allowed, and not the manifest's own name; the message names the path."""
    document["files"][name] = {"sha256": "0" * 64, "size_bytes": 0}
    with pytest.raises(InvalidManifest, match="is not a plain path inside the version") as refused:
        parse(document)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_required_file_that_is_missing_is_rejected(name: str, document: dict[str, Any]) -> None:
    """Every version has a network and golden examples."""
    del document["files"][name]
    with pytest.raises(InvalidManifest, match=f"files lack {name}"):
        parse(document)


def test_variants_are_optional_and_need_their_files(document: dict[str, Any]) -> None:
    """Older manifests have no variants; the file of a variant must be listed."""
    document.pop("variants", None)
    assert parse(document).variants == {}
    worth = {"evaluation": document["evaluation"], "same_labels": 0.995, "golden_tolerance": 0.05}
    document["variants"] = {"int8": worth}
    with pytest.raises(InvalidManifest, match=r"files lack model\.int8\.onnx"):
        parse(document)
    document["files"]["model.int8.onnx"] = {"sha256": "0" * 64, "size_bytes": 1}
    assert parse(document).variants["int8"].same_labels == 0.995
    document["variants"] = {"int4": worth}
    with pytest.raises(InvalidManifest, match=r"^variants\.int4"):
        parse(document)


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", b"1", b"\xff\xfe", b"{}{}", b"[" * 100_000])
def test_bytes_that_are_not_a_json_object_are_rejected(text: bytes) -> None:
    """Invalid JSON or UTF-8, another type, and nesting that is too deep."""
    with pytest.raises(InvalidManifest):
        Manifest.from_json(text)


def test_sealing_validates_too(description: Description) -> None:
    """A manifest that could not be read back is never written."""
    with pytest.raises(InvalidManifest, match=r"files lack golden\.npz, model\.onnx"):
        Manifest.seal(description, {})


def test_geometry_defaults_are_stated() -> None:
    """Without further keys, images are stretched bilinearly, on a white background."""
    geometry = Geometry(height=2, width=3, channels=1)
    assert (geometry.fit, geometry.interpolation, geometry.background, geometry.crop_fraction) == (
        "stretch",
        "bilinear",
        255,
        1,
    )


@fuzz
@given(text=st.binary(max_size=200))
def test_random_bytes_are_rejected(text: bytes) -> None:
    """No other exception than InvalidManifest is raised."""
    with pytest.raises(InvalidManifest):
        Manifest.from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def accepts_only_what_it_can_write(text: bytes) -> None:
    """InvalidManifest is raised, or the manifest can be written and read back."""
    try:
        manifest = Manifest.from_json(text)
    except InvalidManifest:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


@fuzz
@given(field=st.sampled_from(FIELDS), value=json_values)
def test_a_mutated_value_is_rejected_or_valid(field: str, value: object, manifest: Manifest) -> None:
    """Any JSON value in any field, including infinity and lone surrogates."""
    document = json.loads(manifest.to_json())
    holder, key = at(document, field)
    holder[key] = value
    accepts_only_what_it_can_write(json.dumps(document).encode())


@fuzz
@given(data=st.data())
def test_mutated_bytes_are_rejected_or_valid(data: st.DataObject, manifest: Manifest) -> None:
    """Bytes are replaced, inserted or removed anywhere."""
    text = manifest.to_json()
    start = data.draw(st.integers(0, len(text)))
    removed = data.draw(st.integers(0, 20))
    inserted = data.draw(st.binary(max_size=5))
    accepts_only_what_it_can_write(text[:start] + inserted + text[start + removed :])
