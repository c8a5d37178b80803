"""Runs a batch job: lists the images, finds out what is left, classifies it, and writes the parts."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from rich.console import Console

from serving.batch_job.columns import Columns, Row, rows_of
from serving.batch_job.file_classifier import ClassifierOptions
from serving.batch_job.local_engine import LocalEngine, chunks_of
from serving.batch_job.output import JobDescription, Output, open_output, read_description
from serving.batch_job.part_files import Format
from serving.batch_job.progress import BatchProgress
from serving.batch_job.ray_engine import RayEngine
from serving.batch_job.sources import Source, open_source
from serving.batch_job.tables import require_pyarrow
from serving.bundle import STABLE_ALIAS, Bundle, ImageLimits
from serving.bundle.operations import split_name, version_named
from serving.bundle.stored_repository import open_repository
from serving.bundle.urls import is_url
from serving.cpu_quota import available_cores
from serving.errors import UnknownModel

# Images that a process gets at once: few enough that all processes end at about the same time.
_CHUNK_IMAGES = 128
# Threads of each process that read ahead, for files and for URLs, which answer after a while.
_FILE_THREADS, _URL_THREADS = 2, 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What to classify, with what, how, and where to."""

    source: str
    column: str
    root: str | None
    repository: str  # directory or URL
    repository_cache: Path  # for a copy of the version, if it is a URL
    model: str  # MODEL, MODEL@VERSION or MODEL@ALIAS
    output: Path
    format: Format
    part_images: int
    top_k: int
    limits: ImageLimits
    precision: Literal["auto", "fp32", "int8", "fp16"]
    device: str
    max_batch_size: int
    engine: Literal["local", "ray"]
    ray_address: str
    processes: int  # 0: one for each core
    threads: int  # of each process; 0: depends on the source


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job has done, including its earlier runs."""

    output: str
    model: str
    version: int
    digest: str
    images: int
    classified: int
    failed: int
    errors: dict[str, int]  # by code
    parts: int
    resumed_images: int  # that earlier runs had classified
    seconds: float  # of this run
    images_per_s: float  # of this run

    def to_json(self) -> dict[str, object]:
        """Return the keys of `lenserve batch --json`."""
        return asdict(self)


class Engine(Protocol):
    """Classifies chunks of rows: `LocalEngine` and `RayEngine`."""

    def run(self, chunks: Iterator[range]) -> Iterator[Columns]:
        """Yield the results of all rows, in any order."""


def run_job(plan: Plan, console: Console) -> Summary:
    """Run a job to its end, or continue one.

    Raises:
        UsageError: the source, the repository or the output does not fit.
        LenserveError: the job could not be completed. What was written stays, and is continued.
    """
    started_s = time.monotonic()
    if plan.format == "parquet":
        require_pyarrow("--format parquet")
    bundle = _find_bundle(plan)
    source = open_source(plan.source, column=plan.column, root=plan.root, limits=plan.limits)
    for note in source.notes:
        console.print(note, markup=False)
    with open_output(plan.output, _describe(plan, source, bundle)) as output:
        resumed = output.rows_written
        if resumed:
            console.print(f"continuing: {resumed:,} of {len(source.paths):,} images are classified")
        progress = BatchProgress(console, total=len(source.paths), done=resumed)
        if output.missing():
            with progress.shown():
                _classify(_engine(plan, source, bundle, output), output, progress)
    failed = output.errors.total()
    return Summary(
        output=str(plan.output),
        model=bundle.model,
        version=bundle.version,
        digest=bundle.digest,
        images=len(source.paths),
        classified=len(source.paths) - failed,
        failed=failed,
        errors=dict(output.errors),
        parts=output.parts,
        resumed_images=resumed,
        seconds=round(time.monotonic() - started_s, 3),
        images_per_s=round(progress.images_per_s, 1),
    )


def _classify(engine: Engine, output: Output, progress: BatchProgress) -> None:
    """Classify the parts that are missing, and write each as soon as all of its rows are there."""
    begun: dict[int, dict[int, Row]] = {}
    missing = [output.rows(part) for part in output.missing()]
    for columns in engine.run(chunks_of(missing, _CHUNK_IMAGES)):
        failed = sum(map(bool, columns["error"]))
        for number, row in rows_of(columns):
            part = number // output.job.part_images
            rows = begun.setdefault(part, {})
            rows[number] = row
            if len(rows) == len(output.rows(part)):
                output.write(part, [rows[each] for each in output.rows(part)])
                del begun[part]
        progress.add(len(columns["row"]), failed)


def _engine(plan: Plan, source: Source, bundle: Bundle, output: Output) -> Engine:
    reads_urls = is_url(source.reader.archive or source.reader.base) or any(map(is_url, source.paths[:1]))
    # The processes of this machine read the copy. Other machines copy the version themselves.
    everywhere = is_url(plan.repository) and plan.engine == "ray"
    options = ClassifierOptions(
        repository=plan.repository if everywhere else bundle.folder.parents[1].absolute(),
        repository_cache=plan.repository_cache,
        model=bundle.model,
        version=bundle.version,
        digest=bundle.digest,
        reader=source.reader,
        top_k=plan.top_k,
        device=plan.device,
        precision=plan.precision,
        max_batch_size=plan.max_batch_size,
        threads=plan.threads or (_URL_THREADS if reads_urls else _FILE_THREADS),
    )
    if plan.engine == "ray":
        return RayEngine(options, source.batch, address=plan.ray_address, actors=plan.processes)
    images = sum(len(output.rows(part)) for part in output.missing())
    processes = min(plan.processes or available_cores(), -(-images // _CHUNK_IMAGES))
    return LocalEngine(options, source.batch, processes=processes)


def _describe(plan: Plan, source: Source, bundle: Bundle) -> JobDescription:
    return JobDescription(
        source=source.name,
        source_digest=source.digest,
        images=len(source.paths),
        model=bundle.model,
        version=bundle.version,
        bundle_digest=bundle.digest,
        precision=plan.precision,
        top_k=plan.top_k,
        max_image_bytes=plan.limits.max_bytes,
        max_image_pixels=plan.limits.max_pixels,
        format=plan.format,
        part_images=plan.part_images,
    )


def _find_bundle(plan: Plan) -> Bundle:
    """Read and verify a version. Without a revision, a job that was begun keeps its version."""
    repository = open_repository(plan.repository, plan.repository_cache)
    name, revision = split_name(plan.model)
    versions = repository.versions(name)
    if not versions:
        raise UnknownModel(f"the repository has no model {name!r}", known=tuple(repository.models()))
    if revision:
        return repository.read(name, version_named(repository, name, revision))
    begun = read_description(plan.output)
    if begun is not None and begun.model == name:
        return repository.read(name, begun.version)
    return repository.read(name, repository.aliases(name).get(STABLE_ALIAS, versions[-1]))
