"""Formats log events and their fields as text for humans, or as JSON for programs."""

import json
import logging
import queue
import re
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

# Attributes of every LogRecord; all others are fields of the event.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

ACCESS_LOG = "serving.rpc.access_log"  # the name of its logger

_CLOSING_S = 1.0  # time to write the last lines of the access log
_PLAIN = re.compile(r"[^\s\"=]+")


def configure_logs(*, as_json: bool, worker: int | None = None) -> None:
    """Write all events to stderr. A worker's events have its number in the field `worker`."""
    handler = logging.StreamHandler()
    if worker is not None:
        handler.addFilter(partial(_add_worker, worker))
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _configure_access_log(handler)


def _configure_access_log(like: logging.Handler) -> None:
    # A separate file for stderr: with a shared one, other events would wait for the lock of this thread.
    with suppress(OSError, ValueError):  # stderr is not a file
        descriptor = sys.stderr.fileno()
        stderr = open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - open to the end
        target = logging.StreamHandler(stderr)
        target.setFormatter(like.formatter)
        for each in like.filters:
            target.addFilter(each)
        log = logging.getLogger(ACCESS_LOG)
        for handler in log.handlers[:]:
            log.removeHandler(handler)
        log.addHandler(BackgroundHandler(target))
        log.propagate = False


class BackgroundHandler(logging.Handler):
    """Passes events to another handler in a thread: nothing that the other handler does delays the caller.

    If too many wait, new ones are dropped; how many is logged when there is room again.
    """

    def __init__(self, target: logging.Handler, *, max_waiting: int = 10_000) -> None:
        super().__init__()
        self._target = target
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(max_waiting)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue an event. The first one starts the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=_CLOSING_S)
                self._thread.join(_CLOSING_S)
            self._thread = None
        super().close()

    def _write(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._target.handle(record)
            dropped, self._dropped = self._dropped, 0
            if dropped:
                fields = {"name": ACCESS_LOG, "levelno": logging.WARNING, "levelname": "WARNING"}
                lost = logging.makeLogRecord({**fields, "msg": "access_log_dropped", "lines": dropped})
                self._target.handle(lost)


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
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)
