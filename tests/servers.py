"""Servers that tests run, in the test's process or in one of their own."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from serving.server import Server


class Serve(Protocol):
    """Runs a server in this process, ready when it is entered."""

    def __call__(self, **options: object) -> AbstractAsyncContextManager[Server]:
        """The options are fields of `ServerSettings`."""


@dataclass
class ServerProcess:
    """A server in a process of its own, as an operator runs it. `log` grows while it runs."""

    process: subprocess.Popen[str]
    log: list[dict[str, object]] = field(default_factory=list)
    grown: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False  # there will be no more
    reader: threading.Thread | None = None

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC."""
        return str(self.event("listening")["grpc"])

    @property
    def http(self) -> str:
        """HOST:PORT of the probes and metrics."""
        return str(self.event("listening")["http"])

    def event(self, name: str) -> dict[str, object]:
        """The first event of that name in the log, of the server itself and not of one of its workers."""
        return next(self.events(name, worker=None))

    def events(self, name: str, **fields: object) -> Iterator[dict[str, object]]:
        """Every event of that name with these fields so far."""
        for event in list(self.log):
            if event.get("event") == name and all(event.get(key) == fields[key] for key in fields):
                yield event

    def wait_for(
        self, name: str, *, times: int = 1, timeout_s: float = 60, **fields: object
    ) -> list[dict[str, object]]:
        """Events of that name with these fields, once there are so many."""
        with self.grown:
            found = self.grown.wait_for(
                lambda: self.ended or len(list(self.events(name, **fields))) >= times, timeout=timeout_s
            )
            events = list(self.events(name, **fields))
        assert found, self.log
        assert len(events) >= times, self.log
        return events

    def read(self) -> None:
        """Keep what the process logs, to its end."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"text": line}  # no event of ours: a traceback, say
            with self.grown:
                self.log.append(event)
                self.grown.notify_all()
        with self.grown:
            self.ended = True
            self.grown.notify_all()

    def stop(self) -> int:
        """SIGTERM, wait, and the exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=30)
        assert self.reader is not None
        self.reader.join(timeout=30)
        return code


class StartServer(Protocol):
    """Starts `lenserve serve` in a process of its own, and waits until it is ready."""

    def __call__(self, *options: str, code: str | None = None, ready_within_s: float = 60) -> ServerProcess:
        """Run `code`, a Python program, instead of `-m serving.cli`, with the same arguments.

        A large repository needs more than the usual `ready_within_s`.
        """


# Publishes a version whose loading never ends, and waits until this server loads it.
HangLoad = Callable[[ServerProcess], None]
