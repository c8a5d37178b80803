"""Adds up what several processes count: each writes its counts to a file, and any of them reads all files."""

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from serving.metrics.counters import Labels, State
from serving.metrics.families import MetricFamilies

# The environment variable in which a supervisor gives its workers the folder.
SHARED_FOLDER = "LENSERVE_COUNTS_FOLDER"

Snapshot = dict[str, list[tuple[Labels, State]]]  # series by family


class SharedCounts:
    """The file of one process among those of others.

    The file is named after the worker's number, not its process id: a successor resumes the counts of its
    predecessor, and the number of files stays the same however often workers die.
    """

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder = folder
        self._file = _file(folder, worker)
        self._written = b""
        self._writing = Lock()

    def resume(self, metrics: MetricFamilies) -> None:
        """Begin with what the predecessor counted, but for what was true only while it lived."""
        with suppress(FileNotFoundError):
            _merge(metrics, [_without_live(_read(self._file))])

    def write(self, metrics: MetricFamilies) -> None:
        """Let others see what this process has counted. Any thread may call it."""
        with self._writing:
            content = _encode({family.name: family.states() for family in metrics.all()})
            if content != self._written:
                _replace(self._file, content)
                self._written = content

    def read(self) -> MetricFamilies:
        """What all processes have counted."""
        return read_counts(self._folder)


def read_counts(folder: Path) -> MetricFamilies:
    """What all processes of a folder have counted."""
    snapshots = []
    for file in sorted(folder.glob(_file(Path(), "*").name)):
        with suppress(FileNotFoundError):  # the whole folder goes when the server stops
            snapshots.append(_read(file))
    metrics = MetricFamilies()
    _merge(metrics, snapshots)
    return metrics


def forget_live(folder: Path, worker: int) -> None:
    """Drop what was true only while a worker lived. Only for a worker that is dead."""
    file = _file(folder, worker)
    with suppress(FileNotFoundError):  # it died before it counted anything
        _replace(file, _encode(_without_live(_read(file))))


def _merge(metrics: MetricFamilies, snapshots: Iterable[Snapshot]) -> None:
    for family in metrics.all():
        states: defaultdict[Labels, list[State]] = defaultdict(list)
        for snapshot in snapshots:
            for labels, state in snapshot.get(family.name, ()):
                states[tuple(labels)].append(state)
        for labels, found in states.items():
            family.merge(labels, found)


def _without_live(snapshot: Snapshot) -> Snapshot:
    live = {family.name for family in MetricFamilies().all() if family.live}
    return {name: series for name, series in snapshot.items() if name not in live}


def _file(folder: Path, worker: int | str) -> Path:
    return folder / f"counts_{worker}.json"


def _read(file: Path) -> Snapshot:
    snapshot: Snapshot = json.loads(file.read_bytes())
    return snapshot


def _encode(snapshot: Snapshot) -> bytes:
    return json.dumps(snapshot, separators=(",", ":")).encode()


def _replace(file: Path, content: bytes) -> None:
    """At once: a reader sees the old content or the new."""
    written = file.with_suffix(".new")
    written.write_bytes(content)
    written.replace(file)
