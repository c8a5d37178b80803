"""Lists the files of a tar file and where their bytes are, without reading them.

A link has the bytes of the file that it names. Damage is an error, where Python's tarfile only ends its list.
"""

import posixpath
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

from serving.errors import UsageError

NO_CONTENT = -1  # size of a link to what is not there, of a sparse file and of a device
_MAX_LINKS = 40  # from one to the next, as Linux


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    offset: int
    size_bytes: int  # NO_CONTENT if its bytes are not in one piece


def list_archive(source: str, file: Any, wanted: Callable[[str], bool]) -> list[Member]:  # noqa: ANN401 - fsspec is untyped
    """List members in their order.

    Args:
        source: name of the archive, for messages.
        file: the archive, open for reading bytes; it can seek.
        wanted: called with the name of each member that is not a directory; False leaves it out.

    Raises:
        UsageError: the archive is damaged, or is not a tar file.
    """
    members: list[Member] = []
    links: dict[int, str] = {}  # place in members -> what it links to
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if member.isdir() or not wanted(member.name):
                    continue
                if member.isreg() and not member.issparse():
                    members.append(Member(member.name, member.offset_data, member.size))
                    continue
                if member.islnk():
                    links[len(members)] = posixpath.normpath(member.linkname)
                elif member.issym():
                    folder = posixpath.dirname(member.name)
                    links[len(members)] = posixpath.normpath(posixpath.join(folder, member.linkname))
                members.append(Member(member.name, 0, NO_CONTENT))
            _require_end(file, archive.offset)
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"{source} is not a sound tar file: {error}; make or copy it again") from error
    return _follow(members, links) if links else members


def _require_end(file: Any, offset: int) -> None:  # noqa: ANN401 - fsspec is untyped
    """Check that a list ends where the archive does: tarfile ends it at a header that is damaged."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")


def _follow(members: list[Member], links: dict[int, str]) -> list[Member]:
    targets = {posixpath.normpath(members[place].name): target for place, target in links.items()}
    files = {posixpath.normpath(each.name): each for each in members if each.size_bytes != NO_CONTENT}
    for place, target in links.items():
        name: str | None = target
        for _ in range(_MAX_LINKS):
            if name is None or name in files:
                break
            name = targets.get(name)
        if name in files:
            members[place] = files[name]._replace(name=members[place].name)
    return members
