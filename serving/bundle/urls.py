"""URLs of files and repositories, which fsspec opens: s3://bucket/key, and not a path."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from serving.errors import UsageError

_MAX_READABLE = 80  # letters of a URL in the name of a folder


def is_url(location: str) -> bool:
    """Whether fsspec opens it: s3://bucket/key, and not a path."""
    return "://" in location


def url_file_system(url: str, extra: str = "batch") -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Args:
        url: of any protocol that fsspec knows.
        extra: of this package, with what the URL needs; for the message.

    Raises:
        UsageError: fsspec, or the package for the protocol, is missing.
    """
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"{url} needs fsspec: in a checkout, pip install '.[{extra}]'") from error
    try:
        file_system, path = url_to_fs(url)
    except ImportError as error:  # without the package for its protocol
        remedy = ": in a checkout, pip install '.[s3]'" if url.startswith("s3") else ""
        raise UsageError(f"{url} cannot be opened: {error}{remedy}") from error
    except (ValueError, OSError) as error:  # of an unknown protocol, without its server
        raise UsageError(f"{url} cannot be opened: {error}") from error
    return file_system, path


def copy_folder(url: str, cache: Path) -> Path:
    """Return the folder below the cache that belongs to the copy of a repository. It need not exist.

    Raises:
        UsageError: the cache begins with ~, and this user has no home.
    """
    plain = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", plain)[:_MAX_READABLE]
    digest = hashlib.sha256(plain.encode()).hexdigest()[:16]
    try:
        return cache.expanduser() / f"{readable}-{digest}"
    except RuntimeError as error:
        raise UsageError(f"the cache {cache} has no place: {error} Set --repository-cache") from error


def as_text(location: object) -> object:
    """Return a path as text, for settings that take a directory or a URL."""
    if location == "":  # a shell variable was probably not set
        raise ValueError("must not be empty: name a directory, or leave it out")
    return str(location) if isinstance(location, Path) else location


def _no_url(location: object) -> object:
    if isinstance(location, str) and is_url(location):
        raise ValueError(
            f"must be a directory, got the URL {location}: copy the repository into one with the tools of "
            "the store"
        )
    return location


DEFAULT_REPOSITORY = "repository"  # of every command: a directory where it runs
DEFAULT_CACHE = Path("~/.cache/lenserve")

# The repository of a command: a directory, or a URL.
RepositoryLocation = Annotated[str, BeforeValidator(as_text)]

# The folder for copies of a repository that is a URL.
RepositoryCache = Annotated[
    Path, Field(description="directory for copies of versions, if --repository is a URL")
]

# The repository of a command that needs its files: a Path would silently make s3:/bucket of s3://bucket.
RepositoryFolder = Annotated[Path, BeforeValidator(_no_url)]
