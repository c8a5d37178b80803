"""Adds up the counters of several processes: each writes its own memory, and can read the others'."""

import json
import logging
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Self

from serving.metrics.counters import Labels, State
from serving.metrics.families import MetricFamilies

_log = logging.getLogger(__name__)

Snapshot = dict[str, list[tuple[Labels, State]]]  # family name -> its series

_HEADER = struct.Struct("=QQI")  # number of the writing, bytes and CRC-32 of the content that follows
_MOST_READS = 100  # of content that changes meanwhile


class CountsMemory:
    """The counters of one worker, in two files without a name that are written in turn.

    A reader always finds a whole content: the other file keeps the one before, also if the writer is killed.
    The files are in memory, so that a full disk or `/tmp` stops nothing. They are written, not mapped: the
    kernel ends a process that touches a mapped page for which there is no memory.
    """

    def __init__(self, descriptors: tuple[int, int]) -> None:
        self.descriptors = descriptors

    @classmethod
    def create(cls, name: str) -> Self:
        """Create empty memory. The name is for people: it is shown in /proc."""
        return cls((os.memfd_create(name), os.memfd_create(name)))

    def close(self) -> None:
        """Close it in this process."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def read(self) -> bytes:
        """Return the newest content; empty before the first.

        Never older than what was read before: where the second file is being written, the first may have been
        written since it was read, and is read again. If both are being written, so are both.
        """
        for _ in range(_MOST_READS):
            first, second = map(_read_numbered, self.descriptors)
            if not second[0]:
                first = _read_numbered(self.descriptors[0])
            number, content = max(first, second)
            if number or not os.fstat(self.descriptors[1]).st_size:  # the first content is written there
                return content
        return b""

    def write(self, content: bytes) -> None:
        """Replace the content. One writer at a time.

        Raises:
            OSError: there is no memory. The content before stays.
        """
        headers = [os.pread(each, _HEADER.size, 0) for each in self.descriptors]
        number = 1 + max(_HEADER.unpack(header)[0] if header else 0 for header in headers)
        descriptor = self.descriptors[number % 2]
        header = _HEADER.pack(number, len(content), zlib.crc32(content))
        for data, offset in ((content, _HEADER.size), (header, 0)):
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], offset + written)


def _read_numbered(descriptor: int) -> tuple[int, bytes]:
    """Return the number and the content of a file; zero and nothing if it is not whole."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) == _HEADER.size:
        number, size, checksum = _HEADER.unpack(header)
        content = os.pread(descriptor, size, _HEADER.size)
        if zlib.crc32(content) == checksum and len(content) == size:
            return number, content
    return 0, b""


class SharedCounts:
    """The counters of one process, and those of the others.

    They belong to the worker's number, not to its process: a successor resumes the counts of its predecessor.
    """

    def __init__(self, memories: Mapping[int, CountsMemory], worker: int) -> None:
        """Store the options.

        Args:
            memories: of all workers, by number.
            worker: number of this one.
        """
        self._memories = memories
        self._own = memories[worker]
        self._written = b""
        self._has_failed = False
        self._writing = Lock()

    def resume(self, metrics: MetricFamilies) -> None:
        """Continue the counters of the worker's previous process, without its live gauges."""
        _merge(metrics, [_without_live(_decode(self._own.read()))])

    def write(self, metrics: MetricFamilies) -> None:
        """Write the counters of this process for the others. Any thread may call this."""
        with self._writing:
            content = _encode({family.name: family.states() for family in metrics.all()})
            if content == self._written:
                return
            try:
                self._own.write(content)
            except OSError as error:
                self._report(error)
            else:
                self._written, self._has_failed = content, False

    def read(self) -> MetricFamilies:
        """Return the counters of all processes."""
        return read_counts(self._memories.values())

    def _report(self, error: OSError) -> None:
        """Log the first failure since the last success. Serving continues."""
        if not self._has_failed:
            _log.warning("counters_not_written", extra={"reason": str(error)})
        self._has_failed = True


def read_counts(memories: Iterable[CountsMemory]) -> MetricFamilies:
    """Return the sum of the counters in these memories."""
    metrics = MetricFamilies()
    _merge(metrics, [_decode(memory.read()) for memory in memories])
    return metrics


def forget_live(memory: CountsMemory) -> None:
    """Drop the live gauges of a worker that has died."""
    try:
        memory.write(_encode(_without_live(_decode(memory.read()))))
    except OSError as error:
        _log.warning("counters_not_written", extra={"reason": str(error)})


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


def _decode(content: bytes) -> Snapshot:
    snapshot: Snapshot = json.loads(content or b"{}")
    return snapshot


def _encode(snapshot: Snapshot) -> bytes:
    return json.dumps(snapshot, separators=(",", ":")).encode()
