"""Tells versions and models from folders that only look like them: v1, 001, a model one level too deep."""

import re
from pathlib import Path

from serving.bundle.manifest import MANIFEST_FILE, NAME_ALLOWED, NAME_PATTERN
from serving.errors import UnknownModel

_MAX_DIGITS = 18  # 64 bits hold any number of these
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_NEARLY_A_VERSION = re.compile(r"[vV]?[-_.]?0*(?P<number>[1-9][0-9]{0,17})(\.0)*")


def version_number(model: str, revision: str) -> int | None:
    """Return the version that MODEL@REVISION names by its number; None if it names an alias.

    Raises:
        UnknownModel: no version can have this number.
    """
    if not (revision.isascii() and revision.isdigit()):
        return None
    if len(revision) > _MAX_DIGITS:
        raise UnknownModel(
            f"there is no version {revision[:_MAX_DIGITS]}... of model {model!r}: versions have at most "
            f"{_MAX_DIGITS} digits"
        )
    return int(revision)


def is_version_name(name: str) -> bool:
    """Whether a folder of this name in the folder of a model is a version: 1, 2, 3, ..."""
    return _VERSION.fullmatch(name) is not None


def why_not_a_version(folder: Path) -> str:
    """Return why a folder of a model looks like a version but is not taken as one, or ""."""
    if is_version_name(folder.name):
        return ""
    nearly = _NEARLY_A_VERSION.fullmatch(folder.name)
    if nearly is not None:
        return f"is not a version, because its name is not a plain number: rename it to {nearly['number']}"
    if _has_manifest(folder):
        return "has a manifest but is not a version: rename it to a number"
    if _holds_versions(folder):
        return "looks like a model, but is one level too deep: move it into the repository itself"
    return ""


def why_not_a_model(folder: Path) -> str:
    """Return why a folder of the repository looks like a model but is not taken as one, or ""."""
    if NAME_PATTERN.fullmatch(folder.name):
        if not _has_manifest(folder):
            return ""
        if is_version_name(folder.name):
            return f"is a version: the repository of the model {folder.parent} is the folder above that"
        return "is a version without a model: move it to <model>/<version>/"
    return f"is not a model, because of its name: use {NAME_ALLOWED}" if _holds_versions(folder) else ""


def _holds_versions(folder: Path) -> bool:
    try:
        return any(is_version_name(each.name) and _has_manifest(each) for each in folder.iterdir())
    except OSError:
        return False


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_FILE).exists()
    except OSError:  # the folder cannot be read
        return False
