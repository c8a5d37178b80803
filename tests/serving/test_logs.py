"""Log lines of a process."""

import json
import re
import subprocess
import sys

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


def test_every_line_of_a_worker_has_its_number() -> None:
    """It identifies the process that wrote the line."""
    assert {json.loads(text)["worker"] for text in _stderr(as_json=True, worker=3).splitlines()} == {3}
    assert _stderr(as_json=False, worker=3).splitlines()[0].endswith(" path=/models worker=3")


def _stderr(*, as_json: bool, worker: int | None = None) -> str:
    program = PROGRAM.format(as_json=as_json, worker=worker)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout
    return done.stderr
