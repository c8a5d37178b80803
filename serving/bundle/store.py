"""The objects of a repository behind a URL: lists, reads, copies and writes them. Independent of versions.

Writes are conditional: an object is created if it does not exist, and replaced if it is what it was. The
answer to a write may be lost, and the write be repeated with another outcome: so after each failure the
object itself says whether the write has happened.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bundle.urls import url_file_system
from serving.errors import StoreConflict, StoreError, UsageError

# What object stores call the version of an object's content; a file system has its times.
_STATES = ("ETag", "etag", "md5Hash", "generation", "content_md5", "mtime", "created", "LastModified")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object, as a listing shows it."""

    size_bytes: int
    state: str  # another one after the object was replaced


# Those whose file system creates and replaces objects conditionally: `IfNoneMatch` and `IfMatch` of s3fs. The
# base class of fsspec looks whether an object exists and then writes it, which is not atomic.
_CONDITIONAL = ("s3", "s3a")
_PROBE = b"0"
_MAX_PROBE_BYTES = 16

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

    def objects(self, below: str = "") -> Objects:
        """List all objects, by one request for each thousand of them.

        Args:
            below: only those below this path, such as `digits/1`.

        Raises:
            StoreError: the store does not answer, refuses, or has no such bucket.
        """
        with self._errors(self.url):
            files, root = self._open()
            files.invalidate_cache()
            found = files.find(f"{root}/{below}".rstrip("/"), detail=True)
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

    def tag(self, key: str) -> str | None:
        """Return the version of an object's content, for `replace`; None if there is no such object.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        with self._errors(self.url_of(key)):
            files, root = self._open()
            files.invalidate_cache()
            try:
                return str(files.info(f"{root}/{key}")["ETag"])
            except FileNotFoundError:
                return None

    def require_conditional_writes(self, key: str) -> None:
        """Create an object twice: the store must refuse the second, or two publishers could use one number.

        Raises:
            StoreError: it does not, or nothing can be written.
            UsageError: it is not a store that can.
        """
        files, root = self._try_open()
        protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
        if not set(protocols) & set(_CONDITIONAL):
            raise UsageError(
                f"{self.url} cannot be published to: of URLs only s3:// has the conditional writes that it "
                "needs; publish into a directory, and copy the version there with manifest.json last"
            )
        self.create(key, _PROBE)
        with suppress(Exception):  # of any kind: the object says what happened
            files.pipe_file(f"{root}/{key}", b"second", mode="create")
        if self.read(key, _MAX_PROBE_BYTES) != _PROBE:
            raise StoreError(
                f"{self.url_of(key)} was created twice: this store ignores If-None-Match, so two publishers "
                "could use one number; publish into a directory, or use a store with conditional writes"
            )

    def create(self, key: str, content: bytes) -> None:
        """Create an object, unless it exists.

        Raises:
            StoreConflict: it exists with other content.
            StoreError: it cannot be written.
        """
        self._write(key, content, mode="create")

    def replace(self, key: str, content: bytes, tag: str | None) -> None:
        """Replace an object if it is what it was.

        Args:
            key: of the object.
            content: the new one.
            tag: of the object that is replaced; None: there was none.

        Raises:
            StoreConflict: it is another one now.
            StoreError: it cannot be written.
        """
        if tag is None:
            self.create(key, content)
        else:
            self._write(key, content, IfMatch=tag)

    def put(self, path: Path, key: str) -> None:
        """Upload a file.

        Raises:
            StoreError: it cannot be written.
        """
        with self._errors(self.url_of(key), "written"):
            files, root = self._open()
            files.put_file(str(path), f"{root}/{key}")

    def remove_object(self, key: str) -> None:
        """Remove one object, if it exists.

        Raises:
            StoreError: it cannot be removed.
        """
        with self._errors(self.url_of(key), "removed"):
            files, root = self._open()
            files.rm_file(f"{root}/{key}")

    def remove(self, below: str) -> None:
        """Remove all objects below a path.

        Raises:
            StoreError: one cannot be removed.
        """
        with self._errors(self.url_of(below), "removed"):
            files, root = self._open()
            files.rm(f"{root}/{below}", recursive=True)

    def _write(self, key: str, content: bytes, **condition: str) -> None:
        try:
            with self._errors(self.url_of(key), "written"):
                files, root = self._open()
                files.pipe_file(f"{root}/{key}", content, **condition)
        except StoreError as error:
            if self._content(key, len(content)) == content:
                return  # an earlier attempt was answered too late
            if self.tag(key) != condition.get("IfMatch"):
                raise StoreConflict(f"{self.url_of(key)} was written by another one meanwhile") from error
            raise

    def _content(self, key: str, max_bytes: int) -> bytes | None:
        """Return what an object has now; None if it is missing, cannot be read, or is longer."""
        try:
            return self.read(key, max_bytes)
        except StoreError:
            return None

    def url_of(self, key: str) -> str:
        """Return the URL of an object, for messages."""
        return f"{self.url}/{key}"

    def _try_open(self) -> tuple[Any, str]:
        with self._errors(self.url):
            return self._open()

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:  # some file systems connect here
            files, root = self._open_url(self.url)
            self._opened = files, root.rstrip("/")
        return self._opened

    @contextmanager
    def _errors(self, url: str, what: str = "read") -> Iterator[None]:
        try:
            yield
        except UsageError as error:  # a package is missing
            raise StoreError(str(error)) from error
        except Exception as error:  # file systems of fsspec raise many kinds of errors
            reason = " ".join(str(error).split()) or "no reason given"  # in one line
            raise StoreError(f"{url} cannot be {what}: {type(error).__name__}: {reason}") from error


def _state(facts: Mapping[str, object]) -> str:
    """Return what differs between two contents of one name, as far as a listing shows it."""
    return repr([facts[key] for key in (*_STATES, "size") if facts.get(key) is not None])
