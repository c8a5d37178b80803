"""What s3fs does, in memory: conditional writes, requests that are refused, and answers that are lost."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

Hook = Callable[[str, str], None]  # name of a method, path

CHANGES = ("pipe_file", "put_file", "rm", "rm_file")


def _nothing(_name: str, _path: str) -> None:
    pass


class FakeS3:
    """A file system of fsspec, as far as a store uses it."""

    protocol = ("s3", "s3a")

    def __init__(self, *, ignores_conditions: bool = False) -> None:
        self.content: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: Hook = _nothing  # raises to refuse a request
        self.after: Hook = _nothing  # raises to lose its answer
        self._ignores_conditions = ignores_conditions
        self._lock = threading.Lock()

    def invalidate_cache(self) -> None:
        """Forget listings: there are none."""

    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, object]]:
        """List objects."""
        self._before("find", path)
        assert detail
        found = {name: self._facts(name) for name in sorted(self.content) if name.startswith(f"{path}/")}
        self.after("find", path)
        return found

    def info(self, path: str) -> dict[str, object]:
        """Describe an object."""
        self._before("info", path)
        if path not in self.content:
            raise FileNotFoundError(path)
        return self._facts(path)

    def cat_file(self, path: str, *, start: int, end: int) -> bytes:
        """Read an object."""
        self._before("cat_file", path)
        if path not in self.content:
            raise FileNotFoundError(path)
        return self.content[path][start:end]

    def get_file(self, path: str, target: str) -> None:
        """Copy an object into a file."""
        self._before("get_file", path)
        Path(target).write_bytes(self.content[path])

    def put_file(self, source: str, path: str) -> None:
        """Copy a file into an object."""
        self._before("put_file", path)
        self.content[path] = Path(source).read_bytes()
        self.after("put_file", path)

    def pipe_file(self, path: str, value: bytes, *, mode: str = "overwrite", IfMatch: str = "") -> None:  # noqa: N803 - S3's name
        """Write an object, under a condition."""
        self._before("pipe_file", path)
        with self._lock:
            if not self._ignores_conditions:
                if mode == "create" and path in self.content:
                    raise FileExistsError(path)
                if IfMatch and (path not in self.content or self._facts(path)["ETag"] != IfMatch):
                    raise OSError(22, "At least one of the pre-conditions you specified did not hold")
            self.content[path] = value
        self.after("pipe_file", path)

    def rm(self, path: str, *, recursive: bool) -> None:
        """Remove objects."""
        self._before("rm", path)
        assert recursive
        for name in [name for name in self.content if name.startswith(f"{path}/")]:
            del self.content[name]

    def rm_file(self, path: str) -> None:
        """Remove one object; as S3, also if it is missing."""
        self._before("rm_file", path)
        self.content.pop(path, None)
        self.after("rm_file", path)

    def _before(self, name: str, path: str) -> None:
        self.calls.append((name, path))
        self.before(name, path)

    def _facts(self, path: str) -> dict[str, object]:
        content = self.content[path]
        return {"size": len(content), "ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'}
