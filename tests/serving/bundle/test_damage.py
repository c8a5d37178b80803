"""Errors that say that a version is damaged, and those that may pass."""

import errno
import os
import shutil

import pytest

from serving.bundle import Repository
from serving.bundle.damage import is_damage
from serving.errors import BundleError, DigestMismatch, InvalidManifest, StoreError, UnknownModel
from tests.serving.bundle.publishing import Publish


@pytest.mark.parametrize("lost", ["file", "bytes", "manifest", "keys", "folder", "link"])
def test_what_is_missing_or_differs_is_damage(lost: str, repository: Repository, publish: Publish) -> None:
    """It is the same for every process that reads the version."""
    folder = publish().folder
    path = folder / ("manifest.json" if lost in ("manifest", "keys") else "model.onnx")
    if lost == "folder":
        shutil.rmtree(folder)
    else:
        path.unlink()
    if lost in ("bytes", "keys"):
        path.write_text("{}")
    if lost == "link":
        path.symlink_to(path)
    with pytest.raises((BundleError, UnknownModel)) as damaged:
        repository.read("animals", 1)
    assert is_damage(damaged.value)


@pytest.mark.parametrize("kind", [InvalidManifest, DigestMismatch])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.EACCES])
def test_a_file_that_cannot_be_read_now_is_not_damage(kind: type[BundleError], code: int) -> None:
    """Also if a later error hides it; another process may still read the file."""
    first, second = kind("cannot be read"), DigestMismatch("the copy cannot be read")
    first.__cause__, second.__cause__ = OSError(code, os.strerror(code)), first
    assert not is_damage(first)
    assert not is_damage(second)


def test_a_store_that_does_not_answer_says_nothing_about_a_version() -> None:
    """Whatever its file system has raised."""
    error = StoreError("503 Slow Down")
    assert not is_damage(error)
    error.__cause__ = FileNotFoundError(errno.ENOENT, "no such bucket")
    assert not is_damage(error)
