"""The command `lenserve models import`: options and output."""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from serving.bundle.manifest import NAME_ALLOWED, NAME_PATTERN
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryCache, RepositoryLocation
from serving.commandline import DONE, Command, print_line, require_import, stderr
from serving.validation_errors import matching


class ImportModel(Command):
    """Publish an ONNX classifier of another program as a version."""

    example: ClassVar[str] = (
        "lenserve models import resnet50.onnx --labels labels.txt --name resnet50 --repository repository "
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --fit crop --crop-fraction 0.875"
    )

    file: CliPositionalArg[Path] = Field(
        description="ONNX file of any program; weights in other files beside it"
    )
    name: Annotated[str, matching(NAME_PATTERN, NAME_ALLOWED)] = Field(description="name of the model")
    repository: RepositoryLocation = Field(
        default=DEFAULT_REPOSITORY,
        description="directory of published models, created if it is missing, or s3://bucket/models",
    )
    repository_cache: RepositoryCache = DEFAULT_CACHE
    labels: Path | None = Field(
        default=None,
        description="text file with one label in each line, in the order of the output, or JSON; "
        "default: the labels in the file's metadata",
    )
    mean: list[float] = Field(
        default=[], description="subtracted from pixels, one value or one for each channel, such as 0.5"
    )
    std: list[float] = Field(
        default=[], description="divides the difference, one value or one for each channel"
    )
    pixels: Literal["0-1", "0-255"] = Field(
        default="0-1", description="range of the pixels that --mean and --std are of"
    )
    bgr: bool | None = Field(
        default=None,
        description="the network takes blue, green, red, as Caffe's do; default: as JSON beside it says",
    )
    size: (
        Annotated[
            str, matching(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", "a side in pixels such as 224, or HEIGHTxWIDTH")
        ]
        | None
    ) = Field(default=None, description="side in pixels, or HEIGHTxWIDTH; only for files that take any size")
    fit: Literal["stretch", "crop", "pad"] | None = Field(
        default=None,
        description="how images of other proportions fit; default: as JSON beside the file says, or stretch",
    )
    crop_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="with crop: fraction of each side that is kept, such as 224/256 = 0.875",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = Field(
        default=None, description="how images are resized; default: as JSON beside the file says, or bilinear"
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(
        default=None, description="order of the input's axes; only for shapes that can be both"
    )
    output: Literal["logits", "probabilities", "sigmoid"] | None = Field(
        default=None,
        description="what the output holds; default: by the operators behind it and its values",
    )
    output_name: str | None = Field(
        default=None, description="the output with the classes, if there are several"
    )
    images: Path | None = Field(
        default=None,
        description="directory with a directory of images for each label: half calibrate, half test; "
        "none of the model's training images",
    )
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    def run(self) -> int:
        """Import; the repository is unchanged if anything fails."""
        require_import()
        from serving.bundle.stored_repository import open_repository
        from serving.importing.importer import import_model
        from serving.importing.settings import ImportSettings
        from serving.importing.summary import notes, to_json
        from serving.importing.what_is_served import what_is_served

        settings = ImportSettings(
            labels=self.labels,
            mean=tuple(self.mean) or None,
            std=tuple(self.std) or None,
            pixels=self.pixels,
            bgr=self.bgr,
            size=_sides(self.size),
            fit=self.fit,
            crop_fraction=self.crop_fraction,
            interpolation=self.interpolation,
            layout=self.layout,
            output=self.output,
            output_name=self.output_name,
            images=self.images,
        )
        repository = open_repository(self.repository, self.repository_cache, must_exist=False)
        repository.prepare(self.name)
        repository.aliases(self.name)  # invalid ones would fail after hours of measuring
        result = import_model(self.file, self.name, repository, settings)
        for line in notes(result):
            stderr.print(line, markup=False)
        print_line(json.dumps(to_json(result)) if self.as_json else f"published {result.location}")
        for line in what_is_served(result.bundle, result.served, self.repository):
            stderr.print(line, markup=False)
        return DONE


def _sides(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, _, width = size.partition("x")
    return int(height), int(width or height)
