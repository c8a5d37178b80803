"""Copies one version from an object store into a folder, and compares every file with its digest.

A copy that was interrupted continues: files that are complete are not transferred again.
"""

import errno
import shutil
from pathlib import Path

from serving.bundle.manifest import MANIFEST_FILE, FileDigest, Manifest
from serving.bundle.repository import verify_file
from serving.bundle.staging import replace_bytes, sync
from serving.bundle.store import Objects, Store
from serving.errors import DigestMismatch, InvalidManifest


def copy_version(store: Store, base: str, text: bytes, objects: Objects, folder: Path) -> int:
    """Copy a version, and sync it to disk.

    Args:
        store: where it is.
        base: its path there: `<model>/<version>`.
        text: its manifest.json.
        objects: of the version, as the store lists them.
        folder: for the copy. It may hold a part of the same version.

    Returns: bytes of its files.

    Raises:
        DigestMismatch: a file is missing, or differs from its digest.
        InvalidManifest: the manifest does not parse.
        OSError: the folder cannot be written, or is too small.
        StoreError: a file cannot be read.
    """
    try:
        manifest = Manifest.from_json(text)
    except InvalidManifest as error:
        raise InvalidManifest(f"{store.url_of(base)}/{MANIFEST_FILE}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(manifest, folder)
    for name, expected in manifest.files.items():
        _copy_file(store, f"{base}/{name}", expected, objects, folder / name)
    replace_bytes(folder / MANIFEST_FILE, text)
    for path in (*folder.rglob("*"), folder):
        sync(path)
    return _size_bytes(manifest)


def _copy_file(store: Store, key: str, expected: FileDigest, objects: Objects, path: Path) -> None:
    stored = objects.get(key)
    if stored is None:
        raise DigestMismatch(f"{store.url_of(key)} is missing: publish a new version")
    if stored.size_bytes != expected.size_bytes:  # before it fills the disk
        raise DigestMismatch(
            f"{store.url_of(key)} has {stored.size_bytes} bytes, its manifest says {expected.size_bytes}: "
            "publish a new version"
        )
    if path.exists() and _matches(path, expected):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    store.copy(key, partial)
    try:
        verify_file(partial, expected)
    except DigestMismatch as error:
        partial.unlink()
        raise DigestMismatch(f"the copy of {store.url_of(key)}: {error}") from error
    partial.rename(path)


def _matches(path: Path, expected: FileDigest) -> bool:
    try:
        verify_file(path, expected)
    except DigestMismatch:
        return False
    return True


def _require_space(manifest: Manifest, folder: Path) -> None:
    needed = _size_bytes(manifest)
    there = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    free = shutil.disk_usage(folder).free + there
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"it has {needed} bytes, and there is room for {free}: make room, or set --repository-cache",
        )


def _size_bytes(manifest: Manifest) -> int:
    return sum(each.size_bytes for each in manifest.files.values())
