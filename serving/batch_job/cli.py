"""The command `lenserve batch`: options and output."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from serving.bundle.images import DEFAULT_LIMITS, ImageLimits, MaxImageBytes, MaxImagePixels
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryCache, RepositoryLocation
from serving.commandline import DONE, Command, print_line, require_server, stderr
from serving.counted import counted
from serving.validation_errors import matching

SOME_FAILED = 3  # the job is complete, but some of its rows are errors


class Batch(Command):
    """Classify many files with a published version, without a server; continues where it was killed."""

    example: ClassVar[str] = "lenserve batch photos --model digits --repository repository --output out"

    source: CliPositionalArg[str] = Field(
        description="directory, list (.txt, or - for stdin), table (.csv, .tsv, .parquet), .tar, or the URL "
        "of one of them"
    )
    model: str = Field(description="MODEL, MODEL@VERSION or MODEL@ALIAS")
    repository: RepositoryLocation = Field(
        default=DEFAULT_REPOSITORY, description="directory of published models, or s3://bucket/models"
    )
    repository_cache: RepositoryCache = DEFAULT_CACHE
    output: Path = Field(
        description="directory of the results; one that holds a part of this job is continued"
    )
    format: Literal["csv", "parquet"] = Field(default="csv", description="csv or parquet")
    top_k: int = Field(default=5, ge=1, description="labels per image")
    column: str = Field(default="path", description="column of a table with the paths of images")
    root: str | None = Field(
        default=None,
        description="directory or URL that relative paths start at; default: the folder of the list or "
        "table, for stdin the working directory",
    )
    engine: Literal["local", "ray"] = Field(
        default="local", description="local: processes of this machine; ray: Ray Data"
    )
    ray_address: str = Field(
        default="local",
        description="Ray cluster, such as auto or HOST:PORT; local starts one on this machine",
    )
    processes: int = Field(default=0, ge=0, le=1024, description="processes or actors; 0: one per core")
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="threads per process that read ahead; 0: 2 for files, 16 for URLs",
    )
    device: Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")] = Field(
        default="auto", description="auto, cpu, cuda or cuda:N"
    )
    precision: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto", description="as in `lenserve serve`"
    )
    max_batch_size: int = Field(
        default=32, ge=1, le=1024, description="maximum images in one run of a network"
    )
    max_image_bytes: MaxImageBytes = DEFAULT_LIMITS.max_bytes
    max_image_pixels: MaxImagePixels = DEFAULT_LIMITS.max_pixels
    part_images: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="images in one file of the output; a kill loses at most that many per process",
    )
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    def run(self) -> int:
        """Classify; return 3 if the job is complete but some images failed."""
        require_server()
        from serving.batch_job.job import Plan, run_job

        plan = Plan(
            source=self.source,
            column=self.column,
            root=self.root,
            repository=self.repository,
            repository_cache=self.repository_cache,
            model=self.model,
            output=self.output,
            format=self.format,
            part_images=self.part_images,
            top_k=self.top_k,
            limits=ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels),
            precision=self.precision,
            device=self.device,
            max_batch_size=self.max_batch_size,
            engine=self.engine,
            ray_address=self.ray_address,
            processes=self.processes,
            threads=self.threads,
        )
        try:
            with _sigterm_raised():
                summary = run_job(plan, stderr)
        except (KeyboardInterrupt, SystemExit):
            stderr.print("stopped: run the same command again to continue")
            raise
        if self.as_json:
            print_line(json.dumps(summary.to_json()))
        else:
            done = f"classified {summary.classified:,} of {counted(summary.images, 'image')}"
            version = f"{summary.model} version {summary.version}"
            rate = f"{summary.seconds:,.1f} s ({summary.images_per_s:,.0f} images/s)"
            print_line(f"{done} with {version} in {rate}: {summary.output}")
        if summary.failed:
            kinds = ", ".join(f"{count:,} {code}" for code, count in sorted(summary.errors.items()))
            failed = f"{summary.failed:,} of {counted(summary.images, 'image')} failed"
            stderr.print(f"{failed} ({kinds}); their rows say why", markup=False)
        return SOME_FAILED if summary.failed else DONE


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Raise SystemExit at SIGTERM, so that the bar leaves the terminal as it was, and the end is said."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
