"""Notices changes of aliases sooner than a scan of the repository: a look is one `stat` for each model."""

from collections.abc import Sequence

from serving.bundle import Repository

LOOK_INTERVAL_S = 0.1
_MOST_LOOKS = 100  # models at a time: 1,000 models are looked at once a second

_Seen = tuple[int, int, int]  # change time, inode, size


class AliasWatch:
    """Remembers how each model's file of aliases looked last."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._seen: dict[str, _Seen | None] = {}
        self._next = 0

    def changed(self, names: Sequence[str]) -> list[str]:
        """Return the models whose aliases have changed since they were looked at last, or are new.

        Looks at a part of many models each time. Called in a thread.

        Args:
            names: of the models that are served, sorted.
        """
        if self._next >= len(names):
            self._next = 0
        part = names[self._next : self._next + _MOST_LOOKS]
        self._next += _MOST_LOOKS
        return [name for name in part if self._has_changed(name)]

    def _has_changed(self, name: str) -> bool:
        now = self._look(name)
        if name in self._seen and self._seen[name] == now:
            return False
        self._seen[name] = now
        return True

    def _look(self, name: str) -> _Seen | None:
        try:
            stat = self._repository.aliases_file(name).stat()
        except OSError:
            return None
        return stat.st_ctime_ns, stat.st_ino, stat.st_size
