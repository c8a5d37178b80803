"""Log events of the serving core during a test."""

import asyncio
import logging
from typing import Any, cast


class LogEvent(logging.LogRecord):
    """A log record, with the fields of its event as attributes."""

    def __getattr__(self, field: str) -> Any:  # noqa: ANN401 - each event has its own fields
        raise AttributeError(f"{self.getMessage()} has no {field}")


class LogEvents(logging.Handler):
    """All logged events, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[LogEvent] = []
        self._arrived = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Store the event, and wake waiters. All events of the core are logged on the event loop."""
        self.records.append(cast("LogEvent", record))
        self._arrived.set()

    def named(self, event: str) -> list[LogEvent]:
        """Return the events of one name so far."""
        return [record for record in self.records if record.getMessage() == event]

    async def wait_for(self, event: str, *, times: int = 1) -> LogEvent:
        """Wait for a number of events of that name; return the last."""
        async with asyncio.timeout(20):
            while len(self.named(event)) < times:
                self._arrived.clear()
                await self._arrived.wait()
        return self.named(event)[times - 1]
