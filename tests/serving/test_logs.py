"""Log lines of a process."""

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np

from serving.bundle import Repository
from serving.client.client import AsyncClient
from serving.logs import BackgroundHandler, _JsonFormatter, _TextFormatter
from tests.colours import Publish

_LINE_BYTES = 120  # more than a line without fields, less than two

PROGRAM = """
import logging
from pathlib import Path
from serving.logs import configure_logs
configure_logs(as_json={as_json}, worker={worker})
log = logging.getLogger("serving.models.registry")
log.info("version_loaded", extra={{"model": "digits", "version": 3, "path": Path("/models")}})
log.debug("nobody_sees_this")
log.error("version_refused", extra={{"reason": 'two\\nlines, "quoted"', "empty": ""}})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("call_failed", extra={{"request_id": "abc"}})
"""


def test_as_json_every_line_is_one_event_with_its_fields() -> None:
    """Each line has time in UTC, level, event, fields, and a traceback if there is one."""
    loaded, refused, failed = map(json.loads, _stderr(as_json=True).splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", loaded.pop("time"))
    assert loaded == {
        "level": "INFO",
        "event": "version_loaded",
        "model": "digits",
        "version": 3,
        "path": "/models",
    }
    assert refused["reason"] == 'two\nlines, "quoted"'
    assert failed["request_id"] == "abc"
    assert failed["traceback"].endswith("ZeroDivisionError: division by zero")


def test_as_text_an_event_is_one_line() -> None:
    """Fields are key=value; a value with spaces, quotes or line breaks is quoted."""
    loaded, refused, failed, *traceback = _stderr(as_json=False).splitlines()
    assert loaded.endswith(" INFO    version_loaded model=digits version=3 path=/models")
    assert refused.endswith(r' ERROR   version_refused reason="two\nlines, \"quoted\"" empty=""')
    assert failed.endswith(" ERROR   call_failed request_id=abc")
    assert traceback[0] == "Traceback (most recent call last):"


def test_what_terminals_act_on_is_escaped() -> None:
    """A client that names a model so could colour, hide or turn around the lines of others."""
    lines: list[str] = []
    handler = BackgroundHandler(lines.append, dropped_event="events_dropped")
    for formatter in (_TextFormatter(), _JsonFormatter()):
        handler.setFormatter(formatter)
        for name in ("\x1b[31mred", "\x9b31mred", "\u202egnp.exe", "a b\x7f"):
            handler.handle(logging.makeLogRecord({"msg": "call", "model": name}))
        handler.flush()
    handler.close()
    assert [line.partition("model=")[2] for line in lines[:4]] == [
        r'"\u001b[31mred"',
        r'"\u009b31mred"',
        r'"\u202egnp.exe"',
        r'"a b\u007f"',
    ]
    assert not any(set(line) & set("\x1b\x9b\u202e") for line in lines)


def test_every_line_of_a_worker_has_its_number() -> None:
    """It identifies the process that wrote the line."""
    assert {json.loads(text)["worker"] for text in _stderr(as_json=True, worker=3).splitlines()} == {3}
    assert _stderr(as_json=False, worker=3).splitlines()[0].endswith(" path=/models worker=3")


def test_a_reader_that_is_slow_delays_nothing_and_loses_lines() -> None:
    """The caller returns at once; the number of lost lines is logged when there is room again."""
    gate, lines = threading.Event(), list[str]()

    def write(line: str) -> None:
        assert gate.wait(timeout=30)
        lines.append(line)

    handler = BackgroundHandler(write, dropped_event="dropped", max_waiting=3)
    for number in range(10):
        handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    gate.set()
    handler.close()

    assert lines[0] == "line 0"
    assert "dropped" in lines
    assert 3 <= sum(line.startswith("line") for line in lines) <= 4
    assert handler.dropped == 10 - sum(line.startswith("line") for line in lines)


def test_a_waiting_traceback_keeps_no_frame_alive() -> None:
    """A request whose error waits to be written could not be freed."""
    written = list[str]()
    handler = BackgroundHandler(written.append, dropped_event="dropped")
    try:
        int("a request's error")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "failed", "exc_info": (ValueError, error, error.__traceback__)}
        )
    handler.handle(record)
    assert record.exc_info is not None  # other handlers see it unchanged
    waiting = handler._waiting.queue
    assert all(isinstance(each, logging.LogRecord) and not each.exc_info for each in waiting)
    handler.close()
    assert "a request's error" in written[0].splitlines()[-1]


def test_lines_that_cannot_be_written_are_counted() -> None:
    """The reader has closed the pipe, or the disk is full."""

    def fail(_line: str) -> None:
        raise BrokenPipeError

    handler = BackgroundHandler(fail, dropped_event="dropped")
    for number in range(3):
        handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    handler.close()
    assert handler.dropped >= 3


def test_a_line_of_which_a_full_disk_took_a_part_does_not_spoil_the_next(tmp_path: Path) -> None:
    """It ends there, and the next one begins a line."""
    program = f"""
import logging, resource
from serving.logs import configure_logs, flush_logs
configure_logs(as_json=True)
log, (_, hard) = logging.getLogger("serving.models.registry"), resource.getrlimit(resource.RLIMIT_FSIZE)
log.info("before")
flush_logs()
resource.setrlimit(resource.RLIMIT_FSIZE, ({_LINE_BYTES}, hard))
log.info("torn")
flush_logs()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.info("after")
"""
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", program], stderr=log, check=True)
    lines, events = (tmp_path / "log").read_text().splitlines(), list[str]()
    for line in lines:
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line)["event"])
    assert len(lines) == len(events) + 1
    assert events[0] == "before"
    assert "after" in events


async def test_a_log_that_nobody_reads_stops_neither_the_server_nor_its_exit(
    publish: Publish, repository: Repository
) -> None:
    """The pipe is full while a new version is loaded and served, and while the server stops."""
    publish()
    async with _unread_server(repository) as (process, ready):
        publish(rotate=1)
        async with AsyncClient(str(ready["grpc"]), timeout_s=20) as client, asyncio.timeout(30):
            while (await client.classify(np.zeros((8, 8, 3), np.uint8), model="colours")).version != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0


@asynccontextmanager
async def _unread_server(
    repository: Repository,
) -> AsyncIterator[tuple[subprocess.Popen[bytes], dict[str, object]]]:
    """A server whose stderr is a pipe that is full, and the event `listening`."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    command = [
        sys.executable,
        "-m",
        "serving.cli",
        "serve",
        "--repository",
        str(repository.root),
        "--log-json",
    ]
    process = subprocess.Popen(  # noqa: ASYNC220 - it outlives this line
        [*command, "--grpc-port", "0", "--http-port", "0", "--poll-interval-s", "0.05"],
        stderr=writing,
    )
    try:
        seen: dict[str, dict[str, object]] = {}
        with open(reading, encoding="utf-8", closefd=False) as lines:  # noqa: ASYNC230 - read in a thread
            while "ready" not in seen:
                event = json.loads(await asyncio.to_thread(lines.readline))
                seen[event["event"]] = event
        _fill(writing)
        yield process, seen["listening"]
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


def _fill(pipe: int) -> None:
    # A file description of its own: O_NONBLOCK must not hold for the server.
    descriptor = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b" ")
    os.close(descriptor)


def _stderr(*, as_json: bool, worker: int | None = None) -> str:
    program = PROGRAM.format(as_json=as_json, worker=worker)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout
    return done.stderr
