"""Formats log events and their fields as text for humans, or as JSON for programs. A thread writes them."""

import copy
import json
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

# Attributes of every LogRecord; all others are fields of the event.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

ACCESS_LOG = "serving.rpc.access_log"  # the name of its logger

_FLUSH_S = 1.0  # time to write the lines that wait
# Clients choose names: characters that terminals act on, or that change the direction of text, are escaped.
_ACTIVE = "\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
_PLAIN = re.compile(rf"[^\s\"={_ACTIVE}]+")
_CONTROL = re.compile(f"[{_ACTIVE}]")


def configure_logs(*, as_json: bool, worker: int | None = None) -> None:
    """Write all events to stderr. A worker's events have its number in the field `worker`."""
    formatter = _JsonFormatter() if as_json else _TextFormatter()
    write = _LineWriter(_stderr_descriptor())
    # Two queues: calls must not displace other events.
    handler = BackgroundHandler(write, dropped_event="events_dropped")
    access = BackgroundHandler(write, dropped_event="access_log_dropped")
    for each in (handler, access):
        each.setFormatter(formatter)
        if worker is not None:
            each.addFilter(partial(_add_worker, worker))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    log = logging.getLogger(ACCESS_LOG)
    for old in log.handlers[:]:
        log.removeHandler(old)
    log.addHandler(access)
    log.propagate = False


def flush_logs() -> None:
    """Write the events that wait, for at most two seconds: call this before `os._exit`."""
    for handler in _background_handlers():
        handler.flush()


def dropped_lines() -> int:
    """Return how many lines were dropped because stderr was not read or could not be written."""
    return sum(handler.dropped for handler in _background_handlers())


def _background_handlers() -> "list[BackgroundHandler]":
    handlers = (*logging.getLogger().handlers, *logging.getLogger(ACCESS_LOG).handlers)
    return [each for each in handlers if isinstance(each, BackgroundHandler)]


def _stderr_descriptor() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # stderr is closed, or not a file
        return os.open(os.devnull, os.O_WRONLY)


class _LineWriter:
    """Writes lines to a descriptor, one at a time.

    Not a file: a thread that blocks in one holds its lock, and the interpreter aborts if it cannot take that
    at exit.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._one_at_a_time = threading.Lock()
        self._torn = b""  # ends a line of which a full disk took a part

    def __call__(self, line: str) -> None:
        """Write a line. Blocks while the reader does not read."""
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        with self._one_at_a_time:
            data = self._torn + data
            while data:
                data = data[os.write(self._descriptor, data) :]
                self._torn = b"\n" if data else b""


class BackgroundHandler(logging.Handler):
    """Writes events in a thread: a reader that is slow or gone delays no caller.

    If too many wait, new ones are dropped; how many is logged when there is room again.
    """

    def __init__(
        self, write: Callable[[str], None], *, dropped_event: str, max_waiting: int = 10_000
    ) -> None:
        """Store the options.

        Args:
            write: writes one line; may block, and may raise OSError.
            dropped_event: name of the event that says how many lines were dropped.
            max_waiting: events that may wait.
        """
        super().__init__()
        self._write = write
        self._dropped_event = dropped_event
        self._waiting: queue.Queue[logging.LogRecord | threading.Event] = queue.Queue(max_waiting)
        self._overflowed = 0  # events that found no place; counted under this handler's lock
        self._unwritten = 0  # lines that could not be written; counted in the thread
        self._reported = 0
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Lines that were dropped so far."""
        return self._overflowed + self._unwritten

    def emit(self, record: logging.LogRecord) -> None:
        """Queue an event. The first one starts the thread."""
        if record.exc_info:
            # Only the text of a traceback waits: its frames would keep the request's memory.
            record = copy.copy(record)
            record.exc_text = logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
            record.exc_info = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_events, name="log", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._overflowed += 1

    def flush(self) -> None:
        """Write what waits, for at most a second."""
        if self._thread is not None:
            written = threading.Event()
            with suppress(queue.Full):
                self._waiting.put(written, timeout=_FLUSH_S)
                written.wait(_FLUSH_S)

    def close(self) -> None:
        """Write what waits."""
        self.flush()
        super().close()

    def _write_events(self) -> None:
        while True:
            event = self._waiting.get()
            if isinstance(event, threading.Event):
                event.set()
                continue
            self._write_event(event)
            lost = self.dropped - self._reported
            if lost:
                fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
                report = logging.makeLogRecord({**fields, "msg": self._dropped_event, "lines": lost})
                if self.filter(report) and self._write_event(report):
                    self._reported += lost

    def _write_event(self, record: logging.LogRecord) -> bool:
        try:
            self._write(self.format(record))
        except Exception:  # noqa: BLE001 - a line that cannot be written must not end the log
            self._unwritten += 1
            return False
        return True


def _add_worker(worker: int, record: logging.LogRecord) -> bool:
    record.worker = worker
    return True


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _quoted(value: object) -> str:
    # Quoted only if the end of the value would be ambiguous.
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return _CONTROL.sub(lambda each: f"\\u{ord(each[0]):04x}", json.dumps(text, ensure_ascii=False))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{record.exc_text}" if record.exc_text else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_text:
            event["traceback"] = record.exc_text
        return json.dumps(event, default=str)
