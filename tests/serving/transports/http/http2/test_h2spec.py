"""h2spec, a test suite of others: its cases that fail are the exceptions of README.md, and no others."""

import asyncio
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from serving.transports.http.asgi import Event, Receive, Send
from tests.serving.transports.http.http2.applications import START, body_event, read
from tests.serving.transports.http.http2.sockets import open_server

README = Path("serving/transports/http/README.md")
CASES = 146
TIMEOUT_S = 1  # for each reaction of the server; some cases wait for it in vain


async def _answer(_scope: Event, receive: Receive, send: Send) -> None:
    """h2spec expects a body."""
    await read(receive)
    await send(START)
    await send(body_event(b"answer"))


def _exceptions() -> set[str]:
    """The first column of README.md's table of h2spec's cases that fail."""
    table = README.read_text(encoding="utf-8").split("| case of h2spec |")[1]
    return set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))


async def test_h2spec_finds_the_exceptions_of_the_readme_only(tmp_path: Path) -> None:
    """All 146 cases, against the server with its detection of HTTP/1.1."""
    h2spec = shutil.which("h2spec")
    if h2spec is None:
        pytest.skip("h2spec is not on PATH: build it from github.com/summerwind/h2spec")
    report = tmp_path / "report.xml"
    async with open_server(_answer) as port:
        process = await asyncio.create_subprocess_exec(
            h2spec,
            *("--host", "127.0.0.1", "--port", str(port), "--timeout", str(TIMEOUT_S)),
            *("--junit-report", str(report)),
            stdout=asyncio.subprocess.DEVNULL,
        )
        await process.wait()
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - h2spec has written it
    failed = {
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert len(cases) == CASES
    assert failed == _exceptions()
