"""manifest.json: a version's labels, geometry, calibration, evaluation, provenance and digests."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from serving.errors import BundleError, InvalidManifest
from serving.text_files import without_mark
from serving.validation_errors import describe, matching

MODEL_FILE = "model.onnx"
Precision = Literal["int8", "fp16"]
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAME_ALLOWED = "1 to 128 letters, digits, '.', '_' and '-', beginning with a letter or digit"

Sha256 = Annotated[str, matching(r"[0-9a-f]{64}", "64 hexadecimal digits in lower case")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen model that rejects unknown keys."""

    # JSON has no infinity: reject values that cannot be written back.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Geometry(Strict):
    """How decoded pixels of any size become the network's input, uint8 (height, width, channels)."""

    height: int = Field(ge=1, le=4096, description="pixels")
    width: int = Field(ge=1, le=4096, description="pixels")
    channels: Literal[1, 3] = Field(description="1: grey (ITU-R 601 luma), 3: RGB")
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="stretch",
        description="stretch: ignore the aspect ratio; crop: the largest centred part in proportion; "
        "pad: the whole image, centred on the background",
    )
    crop_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="crop: fraction of each side that is kept, for example 224/256 = 0.875",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        default="bilinear", description="bilinear and bicubic are antialiased"
    )
    background: int = Field(
        default=255, ge=0, le=255, description="grey level under transparent pixels and around padded images"
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


class Calibration(Strict):
    """Temperature scaling (Guo et al. 2017, arXiv:1706.04599), fitted on the validation split."""

    temperature: float = Field(gt=0)
    ece_before: Fraction = Field(
        description="expected calibration error at temperature 1, 15 equal-width bins"
    )
    ece_after: Fraction


class Estimate(Strict):
    """A measured fraction with its 95 % interval: Wilson's, or a bootstrap's without a formula."""

    value: Fraction
    low: Fraction
    high: Fraction


class Evaluation(Strict):
    """Results on the held-out test split, from the published file in ONNX Runtime."""

    images: int = Field(ge=1)
    correct: int = Field(ge=0)
    accuracy: Estimate
    ece: Fraction


class Variant(Strict):
    """The same network in another precision and file: faster or smaller, and nearly as accurate."""

    evaluation: Evaluation = Field(description="accuracy on the same test split")
    same_labels: Fraction = Field(
        description="fraction of the test split that gets the same label as from the exported file"
    )
    golden_tolerance: float = Field(gt=0, le=1, description="maximum difference from a golden probability")


class Pretrained(Strict):
    """The pretrained weights that the network started from."""

    network: str = Field(description="torchvision's name of the network")
    file: str = Field(description="file name, without folder")
    sha256: Sha256 = Field(description="SHA-256 of the file")


class Imported(Strict):
    """The ONNX file of another program that became this version, and how it was read."""

    files: Mapping[str, Sha256] = Field(
        min_length=1, description="name -> SHA-256: the ONNX file, and files of its weights if it has any"
    )
    producer: str = Field(description="as the file names it, such as pytorch 2.13.0")
    opset: int = Field(ge=1, description="ONNX operator set of the file")
    scores: Literal["logits", "probabilities", "sigmoid"] = Field(description="what its output holds")
    embedding: str | None = Field(description="tensor of the file; null: the embedding is the output")
    mean: tuple[float, ...] = Field(description="of pixels in 0..1, in the order of the channels")
    std: tuple[float, ...] = Field(description="of pixels in 0..1, in the order of the channels")
    layout: Literal["NCHW", "NHWC"]
    channel_order: Literal["RGB", "BGR", "grey"]
    batch: Literal["dynamic", "made dynamic", "one by one"] = Field(
        description="as exported; after its shapes were changed; or each image of a batch alone"
    )


class Provenance(Strict):
    """Where the weights come from."""

    recipe: str = Field(description="import: another program trained it")
    recipe_digest: Sha256 = Field(description="SHA-256 of the resolved recipe, or of an import's settings")
    data_digest: Sha256 = Field(description="SHA-256 of all images and labels")
    created_at: datetime
    created_by: str | None = Field(
        default=None, description="USER@HOST of the run or import; null: not recorded by older versions"
    )
    framework: str = Field(description="such as torch 2.13.0")
    parameters: int = Field(ge=0)
    pretrained: Pretrained | None = Field(default=None, description="null: trained from random weights")
    continued_from: Sha256 | None = Field(
        default=None,
        description="recipe digest of the shorter run that was continued; null: trained from its first step",
    )

    imported: Imported | None = Field(default=None, description="null: trained by lenserve-train")

    @model_serializer(mode="wrap")
    def _without_null_additions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys that are null: servers that are older than the key reject it."""
        values: dict[str, Any] = serialize(self)
        for name in ("created_by", "continued_from", "imported"):
            if getattr(self, name) is None:
                del values[name]
        return values


# Upper bounds of the buckets of top-1 confidence, each included; the last bucket ends at 1. They are dense
# near 1, where most answers are. Manifests count in these buckets: changing them needs a new key.
CONFIDENCE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
CONFIDENCE_BUCKETS = len(CONFIDENCE_BOUNDS) + 1
Count = Annotated[int, Field(ge=0)]


class Reference(Strict):
    """What the published file answered for the test images, which live answers are compared with."""

    predicted: tuple[Count, ...] = Field(description="images by predicted label, in the order of `labels`")
    confidence: tuple[Count, ...] = Field(
        min_length=CONFIDENCE_BUCKETS,
        max_length=CONFIDENCE_BUCKETS,
        description="images by bucket of top-1 confidence, see CONFIDENCE_BOUNDS",
    )

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        images, of_confidence = sum(self.predicted), sum(self.confidence)
        if images != of_confidence or not images:
            raise ValueError(
                f"predicted counts {images} images and confidence {of_confidence}: expected the same, "
                "at least 1"
            )
        return self


class Gate(Strict):
    """What the run decided about a version before it was published."""

    verdict: Literal["promote", "candidate", "refuse"] = Field(
        description="promote: it became the default; candidate: published only; refuse: published by --force"
    )
    champion: int | None = Field(ge=1, description="version that it was compared with; null: the first one")
    reasons: tuple[str, ...] = Field(default=(), description="what spoke against it")
    forced: bool = Field(default=False, description="whether --force promoted it whatever the verdict")


class FileDigest(Strict):
    """Size and digest of one file of a version."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Description(Strict):
    """Everything a server needs to know about a version, except its name and number, which are in its path.

    The graph's input is `image`, uint8 (N, height, width, channels), 0-255. Its outputs are `probabilities`,
    float32 (N, K), calibrated, and `embedding`, float32 (N, embedding_size).
    """

    schema_version: Literal[1] = 1
    labels: tuple[str, ...] = Field(min_length=2, description="index -> label")
    geometry: Geometry
    embedding_size: int = Field(ge=1)
    calibration: Calibration | None = Field(description="null: not measured, and no temperature is applied")
    evaluation: Evaluation | None = Field(description="null: not measured, imported without labelled images")
    provenance: Provenance
    variants: Mapping[Precision, Variant] = Field(
        default_factory=dict,
        description="precision -> evaluation of model.<precision>.onnx; empty: no variants",
    )
    golden_tolerance: float = Field(
        default=2e-3,
        gt=0,
        le=0.1,
        description="maximum difference from a golden probability, on any device",
    )
    reference: Reference | None = Field(default=None, description="null: drift is not measured")
    gate: Gate | None = Field(default=None, description="null: no run compared it with the version before")

    @field_validator("labels")
    @classmethod
    def _labels_are_distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
            raise ValueError("must be distinct and not empty")
        return labels

    @model_validator(mode="after")
    def _reference_has_every_label(self) -> Self:
        if self.reference is not None and len(self.reference.predicted) != len(self.labels):
            raise ValueError(
                f"reference.predicted has {len(self.reference.predicted)} counts, expected one for each of "
                f"the {len(self.labels)} labels"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_null_additions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys that are null: servers that are older than the key reject it."""
        values: dict[str, Any] = serialize(self)
        for name in ("reference", "gate"):
            if getattr(self, name) is None:
                del values[name]
        return values

    def measured(self) -> Evaluation:
        """Return the evaluation.

        Raises:
            BundleError: there is none, because the version was imported without labelled images.
        """
        if self.evaluation is None:
            raise BundleError(
                "the version was imported without labelled images, so nothing was measured: "
                "import it again with --images"
            )
        return self.evaluation


def variant_file(precision: Precision) -> str:
    """Return the file name of a variant inside its version."""
    return f"model.{precision}.onnx"


class Manifest(Description):
    """manifest.json: a description, and the digests of all other files of the version."""

    files: Mapping[str, FileDigest] = Field(description="path inside the version -> digest")

    @model_validator(mode="after")
    def _files_stay_inside(self) -> Self:
        for name in self.files:
            if not _is_plain_path(name) or name == MANIFEST_FILE:
                raise ValueError(f"file {name!r} is not a plain path inside the version")
        missing = {MODEL_FILE, GOLDEN_FILE, *map(variant_file, self.variants)} - set(self.files)
        if missing:
            raise ValueError(f"files lack {', '.join(sorted(missing))}")
        return self

    @classmethod
    def seal(cls, description: Description, files: Mapping[str, FileDigest]) -> Self:
        """Join a description and the digests of its files.

        Raises:
            InvalidManifest: names the keys, their values and what is allowed.
        """
        with _invalid_manifest():
            return cls.model_validate({**description.model_dump(), "files": files})

    def to_json(self) -> bytes:
        """Encode as indented JSON in UTF-8."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse and validate.

        Raises:
            InvalidManifest: names the keys, their values and what is allowed.
        """
        with _invalid_manifest():
            return cls.model_validate_json(without_mark(text))


def _is_plain_path(name: str) -> bool:
    path = PurePosixPath(name)
    is_inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return is_inside and str(path) == name and name.isprintable()


@contextmanager
def _invalid_manifest() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise InvalidManifest(describe(error, Manifest)) from error
