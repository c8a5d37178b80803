"""The objects of a repository behind a URL: lists, reads and copies them. Independent of versions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bundle.urls import url_file_system
from serving.errors import StoreError, UsageError

# What object stores call the version of an object's content; a file system has its times.
_STATES = ("ETag", "etag", "md5Hash", "generation", "content_md5", "mtime", "created", "LastModified")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object, as a listing shows it."""

    size_bytes: int
    state: str  # another one after the object was replaced


Objects = Mapping[str, StoredObject]  # by their path from the repository


def _open_url(url: str) -> tuple[Any, str]:
    return url_file_system(url, extra="s3")


class Store:
    """The objects below a URL, by their path from there: `digits/1/manifest.json`."""

    def __init__(self, url: str, open_url: Callable[[str], tuple[Any, str]] = _open_url) -> None:
        """Store the options.

        Args:
            url: of the repository.
            open_url: returns a file system of fsspec, and the path of the URL in it.
        """
        self.url = url.rstrip("/")
        self._open_url = open_url
        self._opened: tuple[Any, str] | None = None

    def objects(self) -> Objects:
        """List all objects, by one request for each thousand of them.

        Raises:
            StoreError: the store does not answer, refuses, or has no such bucket.
        """
        with self._errors(self.url):
            files, root = self._open()
            files.invalidate_cache()
            found = files.find(root, detail=True)
        prefix = f"{root}/"
        return {
            path.removeprefix(prefix): StoredObject(int(facts.get("size") or 0), _state(facts))
            for path, facts in found.items()
            if path.startswith(prefix)
        }

    def read(self, key: str, max_bytes: int) -> bytes:
        """Read a whole object.

        Raises:
            StoreError: it cannot be read, or has more bytes than the limit.
        """
        with self._errors(self.url_of(key)):
            files, root = self._open()
            content: bytes = files.cat_file(f"{root}/{key}", start=0, end=max_bytes + 1)
        if len(content) > max_bytes:
            raise StoreError(f"{self.url_of(key)} has more than {max_bytes} bytes, the limit")
        return content

    def copy(self, key: str, target: Path) -> None:
        """Copy an object into a file; a copy that fails leaves no file.

        Raises:
            OSError: the file cannot be written.
            StoreError: the object cannot be read.
        """
        target.touch()  # an error of this machine is not one of the store
        try:
            with self._errors(self.url_of(key)):
                files, root = self._open()
                files.get_file(f"{root}/{key}", str(target))
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise

    def url_of(self, key: str) -> str:
        """Return the URL of an object, for messages."""
        return f"{self.url}/{key}"

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:  # some file systems connect here
            files, root = self._open_url(self.url)
            self._opened = files, root.rstrip("/")
        return self._opened

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except UsageError as error:  # a package is missing
            raise StoreError(str(error)) from error
        except Exception as error:  # file systems of fsspec raise many kinds of errors
            reason = " ".join(str(error).split()) or "no reason given"  # in one line
            raise StoreError(f"{url} cannot be read: {type(error).__name__}: {reason}") from error


def _state(facts: Mapping[str, object]) -> str:
    """Return what differs between two contents of one name, as far as a listing shows it."""
    return repr([facts[key] for key in (*_STATES, "size") if facts.get(key) is not None])
