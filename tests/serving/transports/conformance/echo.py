"""Methods for tests of transports, and records of the calls."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from serving import errors
from serving.rpc.routes import Call, Rpc, Stream, Unary

SERVICE = "tests.Echo"


def _no_place() -> None:
    raise errors.Overloaded("full")


@dataclass
class Echo:
    """Test methods, and records of the calls."""

    calls: Counter[str] = field(default_factory=Counter)
    deadlines_s: list[float] = field(default_factory=list)  # of Say, on the clock of time.monotonic()
    produced: int = 0  # messages that Count has yielded
    taken: int = 0  # messages that Sum has received
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    cancelled: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def rows(self) -> tuple[Rpc, ...]:
        """The table."""
        return (
            Unary(f"/{SERVICE}/Nothing", Empty, self.say),
            Unary(f"/{SERVICE}/Say", BytesValue, self.say),
            Unary(f"/{SERVICE}/Fail", StringValue, self.fail),
            Unary(f"/{SERVICE}/Full", BytesValue, self.full, admit=_no_place),
            Unary(f"/{SERVICE}/Metadata", Empty, self.metadata),
            Unary(f"/{SERVICE}/Wait", BytesValue, self.wait),
            Stream(f"/{SERVICE}/Each", BytesValue, self.each),
            Stream(f"/{SERVICE}/Sum", BytesValue, self.sum),
            Stream(f"/{SERVICE}/Count", StringValue, self.count),
            Stream(f"/{SERVICE}/WaitStream", BytesValue, self.wait_stream),
            Stream(f"/{SERVICE}/Refuse", BytesValue, self.refuse),
            Stream(f"/{SERVICE}/FailAfterOne", StringValue, self.fail_after_one),
        )

    async def say(self, request: Message, call: Call) -> Message:
        """Return the request."""
        self.deadlines_s.append(call.deadline_s)
        self.calls["say"] += 1
        return request

    async def fail(self, request: StringValue, _call: Call) -> StringValue:
        """Raise the error that the first word names, with the rest as its message."""
        kind, _, message = request.value.partition(" ")
        raise getattr(errors, kind)(message)

    async def full(self, _request: BytesValue, _call: Call) -> BytesValue:
        """Reject every request. Transports can do so before a request is complete."""
        raise errors.Overloaded("full")

    async def metadata(self, _request: Empty, call: Call) -> StringValue:
        """Return the metadata of the call as JSON."""
        return StringValue(value=json.dumps(dict(call.metadata)))

    async def wait(self, request: BytesValue, _call: Call) -> BytesValue:
        """Release `begun`; return the request after `may_end`."""
        self.begun.release()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        return request

    async def each(self, requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[BytesValue]:
        """Return every message at once."""
        self.begun.release()
        try:
            async for request in requests:
                yield request
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.release()
            raise

    async def sum(self, requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[Int64Value]:
        """Wait for `may_end`, then return the number of bytes in all messages."""
        self.begun.release()
        await self.may_end.wait()
        total = 0
        async for request in requests:
            self.taken += 1
            total += len(request.value)
        yield Int64Value(value=total)

    async def count(self, requests: AsyncIterator[StringValue], _call: Call) -> AsyncIterator[BytesValue]:
        """For each "MESSAGES BYTES", yield that many messages of that size, each with its number first."""
        async for request in requests:
            messages, size = map(int, request.value.split())
            for number in range(messages):
                self.produced += 1
                yield BytesValue(value=number.to_bytes(4, "big").ljust(size, b"\0")[:size])

    async def wait_stream(
        self, _requests: AsyncIterator[BytesValue], _call: Call
    ) -> AsyncIterator[BytesValue]:
        """Yield one answer, then wait for `may_end`. Reads nothing."""
        self.begun.release()
        try:
            yield BytesValue(value=b"begun")
            await self.may_end.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.release()
            raise

    async def refuse(self, _requests: AsyncIterator[Any], _call: Call) -> AsyncIterator[BytesValue]:
        """Fail before reading."""
        raise errors.Unauthenticated("nobody is known here")
        yield

    async def fail_after_one(
        self, requests: AsyncIterator[StringValue], call: Call
    ) -> AsyncIterator[StringValue]:
        """Return the first message, then fail as it requests."""
        async for request in requests:
            yield request
            await self.fail(request, call)
