"""What a bundle says of itself: labels, geometry, calibration, evaluation, provenance and digests."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serving.errors import InvalidManifest
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
    """A frozen value that refuses what it does not know."""

    # JSON has no infinity: a value that could not be written back is refused.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Geometry(Strict):
    """How decoded pixels of any size become the network's input, uint8 (height, width, channels)."""

    height: int = Field(ge=1, le=4096, description="pixels")
    width: int = Field(ge=1, le=4096, description="pixels")
    channels: Literal[1, 3] = Field(description="1: grey (ITU-R 601 luma), 3: RGB")
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="stretch",
        description="stretch: each side to its length; crop: the largest centred part of the right shape; "
        "pad: the whole image, centred on the background",
    )
    crop_fraction: float = Field(
        default=1.0, gt=0, le=1, description="with crop: this much of each side stays, 224/256 = 0.875 say"
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        default="bilinear", description="bilinear and bicubic are antialiased when shrinking"
    )
    background: int = Field(
        default=255, ge=0, le=255, description="under transparent pixels and beside padded images"
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
    """A measured fraction with its 95 % interval: Wilson's, or the bootstrap's where there is no formula."""

    value: Fraction
    low: Fraction
    high: Fraction


class Evaluation(Strict):
    """The held-out test split, measured through ONNX Runtime on the published file."""

    images: int = Field(ge=1)
    correct: int = Field(ge=0)
    accuracy: Estimate
    ece: Fraction


class Variant(Strict):
    """The same network in another precision, in a file of its own: faster or smaller, and nearly as good."""

    evaluation: Evaluation = Field(description="on the same test split")
    same_labels: Fraction = Field(description="of the test split, where it says what the exported file says")
    golden_tolerance: float = Field(
        gt=0, le=1, description="largest difference of any of its probabilities from the golden ones"
    )


class Pretrained(Strict):
    """The weights that a network began with, or was taken over with."""

    network: str = Field(description="torchvision's name of it")
    file: str = Field(description="name of the file, without its folder")
    sha256: Sha256 = Field(description="of the file")


class Provenance(Strict):
    """Where the weights come from."""

    recipe: str
    recipe_digest: Sha256 = Field(description="of the resolved recipe")
    data_digest: Sha256 = Field(description="of every image and label that was used")
    created_at: datetime
    framework: str = Field(description="torch 2.13.0, say")
    parameters: int = Field(ge=0)
    pretrained: Pretrained | None = Field(default=None, description="none: all was learned from the data")


class FileDigest(Strict):
    """One file of a version, except the manifest itself."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Description(Strict):
    """Everything a server must know of a version but its name and number, which its folder says.

    The graph takes `image`, uint8 (N, height, width, channels), and gives `probabilities`, float32 (N, K),
    calibrated, and `embedding`, float32 (N, embedding_size).
    """

    schema_version: Literal[1] = 1
    labels: tuple[str, ...] = Field(min_length=2, description="index -> label")
    geometry: Geometry
    embedding_size: int = Field(ge=1)
    calibration: Calibration
    evaluation: Evaluation
    provenance: Provenance
    variants: Mapping[Precision, Variant] = Field(
        default_factory=dict, description="precision -> what model.<precision>.onnx is worth; absent: none"
    )
    golden_tolerance: float = Field(
        default=2e-3, gt=0, le=0.1, description="largest difference of any golden probability on any device"
    )

    @field_validator("labels")
    @classmethod
    def _labels_are_distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
            raise ValueError("must be distinct and not empty")
        return labels


def variant_file(precision: Precision) -> str:
    """Where a variant lies in its version."""
    return f"model.{precision}.onnx"


class Manifest(Description):
    """manifest.json: a description, sealed with the digests of every other file of its version."""

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
        """UTF-8, indented for people."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse and validate.

        Raises:
            InvalidManifest: names the keys, their values and what is allowed.
        """
        with _invalid_manifest():
            return cls.model_validate_json(text)


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
