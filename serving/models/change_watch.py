"""Notices publications and changes of aliases sooner than a scan: a look is two `stat` calls for each model.

It looks at files that are written last, not at folders: a version that is copied in by other means is left to
the next scan, because half of it would be seen more often.

One thread looks at many models. Where a folder hangs, it is left, and another one goes on with the others.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from serving.bundle import Repository
from serving.models.folder_threads import FolderThreads

LOOK_INTERVAL_S = 0.1
_MOST_LOOKS = 100  # models at a time: 1,000 models are looked at once a second
_LATE_S = 0.5  # a hundred looks take some milliseconds

_File = tuple[int, int, int] | None  # change time in ns, inode, size; None: there is none
_Seen = tuple[_File, ...]


@dataclass(slots=True)
class _Round:
    """The looks of one thread. It writes, and the event loop reads."""

    names: Sequence[str]
    at: str = ""  # the model that it looks at
    changed: list[str] = field(default_factory=list)
    is_left: bool = False


class ChangeWatch:
    """Remembers how the files of each model looked last that are written at each change."""

    def __init__(self, repository: Repository, threads: FolderThreads, *, late_s: float = _LATE_S) -> None:
        """Store the options.

        Args:
            repository: has the models.
            threads: look at files.
            late_s: seconds for one round, after which the folder that is looked at hangs.
        """
        self._repository = repository
        self._threads = threads
        self._late_s = late_s
        self._seen: dict[str, _Seen] = {}
        self._hanging: set[str] = set()
        self._next = 0

    async def changed(self, names: Sequence[str]) -> list[str]:
        """Return the models that have changed since they were looked at last, or are new.

        Looks at a part of many models each time, and not at those that hang.

        Args:
            names: of the models that are served, sorted.
        """
        if self._next >= len(names):
            self._next = 0
        part = names[self._next : self._next + _MOST_LOOKS]
        self._next += _MOST_LOOKS
        look = _Round([name for name in part if name not in self._hanging])
        looking = self._threads.start(partial(self._look_at, look))
        await asyncio.wait([looking], timeout=self._late_s)
        if not looking.done() and look.at:
            look.is_left = True
            self._hanging.add(look.at)
            looking.add_done_callback(partial(self._end_hanging, look.at))
        return list(look.changed)

    def found_nothing(self, name: str) -> bool:
        """Whether the last look at a model found none of its files: it may be gone."""
        return not any(self._seen.get(name, ()))

    def look_again(self, name: str) -> None:
        """Report a model at the next look, whether it changes or not."""
        self._seen.pop(name, None)

    def _end_hanging(self, name: str, _: asyncio.Task[None]) -> None:
        self._hanging.discard(name)

    def _look_at(self, look: _Round) -> None:
        """Called in a thread."""
        for name in look.names:
            look.at = name
            now = self._look(name)
            if look.is_left:
                return
            if name not in self._seen or self._seen[name] != now:
                self._seen[name] = now
                look.changed.append(name)

    def _look(self, name: str) -> _Seen:
        return tuple(map(_look_at_file, self._repository.files_of_changes(name)))


def _look_at_file(path: Path) -> _File:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_ino, stat.st_size
