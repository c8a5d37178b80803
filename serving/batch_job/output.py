"""The output folder of a batch: job.json, which says what is classified, and parts, written atomically.

A part holds the rows of a fixed range of images. It is there completely or not at all: after a kill, the
parts that are missing are the work that is left.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.batch_job.columns import Row
from serving.batch_job.part_files import DamagedPart, Format, count_errors, count_part, encode_part
from serving.errors import LenserveError, UsageError

JOB_FILE = "job.json"
_FORMAT_VERSION = 1
_TEMPORARY_PREFIX = ".writing-"


class OutputError(LenserveError):
    """The output cannot be written."""


@dataclass(frozen=True, slots=True)
class JobDescription:
    """What determines every row of an output: only a command with the same description continues a job."""

    source: str
    source_digest: str
    images: int
    model: str
    version: int
    bundle_digest: str
    precision: str
    top_k: int
    max_image_bytes: int
    max_image_pixels: int
    format: Format
    part_images: int


# Keys of a description -> how a message names them. The name of the source may change, its digest must not.
_COMPARED = {
    "source_digest": "source",
    "images": "number of images",
    "model": "--model",
    "version": "version",
    "bundle_digest": "digest of the version",
    "precision": "--precision",
    "top_k": "--top-k",
    "max_image_bytes": "--max-image-bytes",
    "max_image_pixels": "--max-image-pixels",
    "format": "--format",
    "part_images": "--part-images",
}


class Output:
    """The parts of one job. `open_output` creates it."""

    def __init__(self, folder: Path, job: JobDescription) -> None:
        self.folder = folder
        self.job = job
        self.errors: Counter[str] = Counter()
        self.written: set[int] = set()

    @property
    def parts(self) -> int:
        """Number of parts of the whole job."""
        return -(-self.job.images // self.job.part_images)

    @property
    def rows_written(self) -> int:
        """Number of rows in the parts that are there."""
        return sum(len(self.rows(part)) for part in self.written)

    def rows(self, part: int) -> range:
        """Return the numbers of the images of a part."""
        start = part * self.job.part_images
        return range(start, min(start + self.job.part_images, self.job.images))

    def missing(self) -> list[int]:
        """Return the parts that are not written yet."""
        return [part for part in range(self.parts) if part not in self.written]

    def path(self, part: int) -> Path:
        """Return the file of a part. Sorted by name, parts are in the order of the source."""
        digits = max(5, len(str(self.parts - 1)))
        return self.folder / f"part-{part:0{digits}d}.{self.job.format}"

    def scan(self) -> None:
        """Find the parts that an earlier run has written, and count their errors.

        Raises:
            DamagedPart: a part cannot be read, or lacks rows.
        """
        for part in range(self.parts):
            path = self.path(part)
            if not path.exists():
                continue
            rows, errors = count_part(path, self.job.format)
            if rows != len(self.rows(part)):
                raise DamagedPart(
                    f"{path} has {rows} rows, expected {len(self.rows(part))}: "
                    "remove it, and run the command again"
                )
            self._add(part, errors)

    def write(self, part: int, rows: Sequence[Row]) -> None:
        """Write a part.

        Raises:
            OutputError: it cannot be written. There is no part then.
        """
        content = encode_part(rows, self.job.model, self.job.version, self.job.format)
        _replace(self.path(part), content)
        self._add(part, count_errors(row.error for row in rows))

    def _add(self, part: int, errors: Counter[str]) -> None:
        self.written.add(part)
        self.errors += errors


def read_description(folder: Path) -> JobDescription | None:
    """Read job.json; None if the folder holds no job.

    Raises:
        UsageError: job.json is invalid.
    """
    path = folder / JOB_FILE
    try:
        state = json.loads(path.read_bytes())
        found = state.pop("format_version", None)
        job = JobDescription(**state)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not the state of a batch ({error}): choose another --output") from error
    if found != _FORMAT_VERSION:
        raise UsageError(
            f"{path} has the format {found}, this version of Lenserve writes {_FORMAT_VERSION}: "
            "choose another --output"
        )
    return job


@contextmanager
def open_output(folder: Path, job: JobDescription) -> Iterator[Output]:
    """Open the output of a job, new or begun, and keep other processes from writing it.

    Raises:
        UsageError: the folder holds something else, another job, or is in use.
        OutputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"--output {folder} cannot be created: {error.strerror}") from error
    try:
        _lock(descriptor, folder)
        begun = read_description(folder)
        if begun is None:
            _require_empty(folder)
            state = {"format_version": _FORMAT_VERSION, **asdict(job)}
            _replace(folder / JOB_FILE, json.dumps(state, indent=1).encode() + b"\n")
        else:
            _require_same(folder, begun, job)
        for temporary in folder.glob(_TEMPORARY_PREFIX + "*"):
            temporary.unlink()
        output = Output(folder, job)
        output.scan()
        yield output
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it if this process dies
    except BlockingIOError as error:
        raise UsageError(f"--output {folder} is in use by another process: wait for it to end") from error
    except OSError:
        return  # a file system without locks


def _require_empty(folder: Path) -> None:
    found = next((path.name for path in sorted(folder.iterdir()) if not _is_temporary(path)), None)
    if found is not None:
        raise UsageError(
            f"--output {folder} has no {JOB_FILE} but holds {found}: choose a new or an empty folder"
        )


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(_TEMPORARY_PREFIX)


def _require_same(folder: Path, begun: JobDescription, job: JobDescription) -> None:
    before, now = asdict(begun), asdict(job)
    differing = next((key for key in _COMPARED if before[key] != now[key]), None)
    if differing is None:
        return
    remedy = "choose another --output, or repeat the command that began it"
    if differing == "source_digest" and begun.source == job.source:
        raise UsageError(
            f"--output {folder} holds a job on {job.source}, whose images changed since it began: it had "
            f"{begun.images:,}, now there are {job.images:,}; choose another --output, or restore them"
        )
    if differing == "bundle_digest":
        raise UsageError(
            f"--output {folder} holds a job with another {job.model} version {job.version}, such as one of "
            f"another --repository; {remedy}"
        )
    shown = "source" if differing == "source_digest" else differing  # digests say nothing to people
    raise UsageError(
        f"--output {folder} holds a job with another {_COMPARED[differing]}: it has {before[shown]}, this "
        f"command {now[shown]}; {remedy}"
    )


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(_TEMPORARY_PREFIX + path.name)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()  # half a file on a full disk takes the room that is missing
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; make room or correct its permissions, and run the "
            "command again: nothing that was written is lost"
        ) from error
