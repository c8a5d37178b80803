"""A file system of fsspec with faults: calls that fail, and copies that end early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Before = Callable[[str, str], None]  # name of a method, path


class FaultyFiles:
    """Passes calls on to another file system, after `before` has seen them."""

    def __init__(self, files: Any) -> None:  # noqa: ANN401 - fsspec is untyped
        self.files = files
        self.calls: list[tuple[str, str]] = []  # name of the method, path
        self.before: Before = lambda _name, _path: None  # raises to fail a call
        self.cut_bytes = 0  # missing at the end of each copy

    def fail_from(self, call: int) -> None:
        """Fail every call from this one on, counted from 0 and from now."""
        first = len(self.calls) + call

        def refuse(name: str, path: str) -> None:
            if len(self.calls) > first:
                raise ConnectionResetError(f"{name} {path}: the connection was reset")

        self.before = refuse

    def recover(self) -> None:
        """Let all calls through."""
        self.before, self.cut_bytes = lambda _name, _path: None, 0

    def invalidate_cache(self) -> None:
        """Forget listings."""
        self.files.invalidate_cache()

    def find(self, path: str, **options: Any) -> dict[str, dict[str, object]]:
        """List objects."""
        self._called("find", path)
        found: dict[str, dict[str, object]] = self.files.find(path, **options)
        return found

    def cat_file(self, path: str, **options: Any) -> bytes:
        """Read an object."""
        self._called("cat_file", path)
        content: bytes = self.files.cat_file(path, **options)
        return content

    def get_file(self, path: str, target: str) -> None:
        """Copy an object."""
        self._called("get_file", path)
        self.files.get_file(path, target)
        if self.cut_bytes:
            content = Path(target).read_bytes()
            Path(target).write_bytes(content[: -self.cut_bytes])

    def _called(self, name: str, path: str) -> None:
        self.calls.append((name, path))
        self.before(name, path)
