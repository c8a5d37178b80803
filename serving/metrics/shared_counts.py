"""Adds up the counters of several processes: each process writes one file, and can read all files."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from serving.metrics.counters import Labels, State
from serving.metrics.families import MetricFamilies

# The environment variable with the folder of the files; the supervisor sets it for its workers.
SHARED_FOLDER = "LENSERVE_COUNTS_FOLDER"

_log = logging.getLogger(__name__)

Snapshot = dict[str, list[tuple[Labels, State]]]  # family name -> its series


class SharedCounts:
    """The counter file of one process, and those of the others.

    The file is named after the worker's number, not its process id: a successor resumes the counts of its
    predecessor, and the number of files does not grow when workers die.
    """

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder = folder
        self._file = _file(folder, worker)
        self._written = b""
        self._has_failed = False
        self._writing = Lock()

    def resume(self, metrics: MetricFamilies) -> None:
        """Continue the counters of the worker's previous process, without its live gauges."""
        with suppress(FileNotFoundError):
            _merge(metrics, [_without_live(_read(self._file))])

    def write(self, metrics: MetricFamilies) -> None:
        """Write the counters of this process for the others. Any thread may call this."""
        with self._writing:
            content = _encode({family.name: family.states() for family in metrics.all()})
            if content == self._written:
                return
            try:
                _replace(self._file, content)
            except OSError as error:  # the disk is full, or a stopped supervisor removed the folder
                self._report(error)
            else:
                self._written, self._has_failed = content, False

    def read(self) -> MetricFamilies:
        """Return the counters of all processes."""
        return read_counts(self._folder)

    def _report(self, error: OSError) -> None:
        """Log the first failure since the last success. Serving continues."""
        if not self._has_failed:
            _log_failure(self._file, error)
        self._has_failed = True


def read_counts(folder: Path) -> MetricFamilies:
    """Return the counters of all processes that write to a folder."""
    snapshots = []
    for file in sorted(folder.glob(_file(Path(), "*").name)):
        with suppress(FileNotFoundError):  # the folder is removed when the server stops
            snapshots.append(_read(file))
    metrics = MetricFamilies()
    _merge(metrics, snapshots)
    return metrics


def forget_live(folder: Path, worker: int) -> None:
    """Drop the live gauges of a worker that has died."""
    file = _file(folder, worker)
    try:
        _replace(file, _encode(_without_live(_read(file))))
    except FileNotFoundError:  # the worker died before its first write
        pass
    except OSError as error:
        _log_failure(file, error)


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


def _log_failure(file: Path, error: OSError) -> None:
    _log.warning("counters_not_written", extra={"file": str(file), "reason": str(error)})


def _replace(file: Path, content: bytes) -> None:
    """Replace a file atomically: readers see either the old or the new content."""
    written = file.with_suffix(".new")
    written.write_bytes(content)
    written.replace(file)
