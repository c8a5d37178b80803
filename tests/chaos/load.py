"""A load from a separate process: calls at random times, or a number of calls that are always in flight.

`python -m tests.chaos.load` reads its plan from a line of standard input, a JSON object with the fields of
`Plan`, and prints its calls and the different answers as JSON. `applied` runs it on the client's core.
"""

import asyncio
import gc
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import grpc

from tests.benchmarks.processes import CLIENT_CORES, pinned

CONNECTIONS = 8
_SEED = 3
_MakeCall = Callable[[int, float], Coroutine[None, None, str]]
_PATIENCE_S = 60.0
_PAUSE_S = 0.1  # of a caller that was refused, as RetryInfo asks
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
# The oldest objects are the calls so far: while they were collected, p99 rose to 60 ms after 200,000 calls.
_COLLECT_YOUNG = (700, 10, 1_000_000)  # gc.set_threshold: the oldest generation never


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load does."""

    port: int
    method: str
    message_hex: str
    seconds: float  # infinite: until standard input ends
    calls_per_s: float = 0.0  # at random times (a Poisson process); 0: `in_flight` calls at any time
    in_flight: int = 0
    deadline_s: float = _PATIENCE_S  # from when a call was due
    metadata: Sequence[Sequence[str]] = ()
    seed: int = _SEED


@dataclass(frozen=True, slots=True)
class Call:
    """One call. Times are those of time.monotonic, which all processes share."""

    due_s: float
    latency_s: float  # from when it was due
    code: str
    answer: int  # place in the different answers; -1 if it failed


@dataclass(slots=True)
class Outcome:
    """All calls of a load."""

    calls: list[Call] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)  # the different ones
    busy: float = 0.0  # share of its core that the client used: near 1, it measures itself

    def count(self, code: str) -> int:
        """Number of calls that ended with a code."""
        return sum(call.code == code for call in self.calls)

    def codes(self) -> dict[str, int]:
        """Number of calls by code."""
        return {code: self.count(code) for code in sorted({call.code for call in self.calls})}

    def p99_ms(self) -> float:
        """99th percentile of the answered calls."""
        return p99_ms(self.calls)


def p99_ms(calls: Sequence[Call]) -> float:
    """99th percentile of the calls that were answered."""
    times_s = sorted(call.latency_s for call in calls if call.code == "OK")
    return 1000 * times_s[int(0.99 * (len(times_s) - 1))] if times_s else math.inf


class Load:
    """A running load."""

    def __init__(self, plan: Plan) -> None:
        command = [sys.executable, "-m", "tests.chaos.load"]
        with pinned(CLIENT_CORES):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()

    def outcome(self) -> Outcome:
        """Wait for the end, or end a load without one."""
        text, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit("the load failed: its error is above")
        found = json.loads(text)
        calls = [Call(*each) for each in found["calls"]]
        return Outcome(calls, [bytes.fromhex(each) for each in found["answers"]], found["busy"])


def applied(plan: Plan) -> Outcome:
    """Apply a load, and wait for its end."""
    return Load(plan).outcome()


async def _apply(plan: Plan) -> Outcome:
    """Make all calls over some connections, in turn."""
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{plan.port}", options=_CHANNEL_OPTIONS)
        for _ in range(CONNECTIONS)
    ]
    outcome, places = Outcome(), dict[bytes, int]()
    message, metadata = bytes.fromhex(plan.message_hex), tuple(map(tuple, plan.metadata))
    senders = [channel.unary_unary(plan.method) for channel in channels]  # bytes in, bytes out
    await asyncio.gather(*(channel.channel_ready() for channel in channels))

    async def call(number: int, due_s: float) -> str:
        code, place = "OK", -1
        try:
            left_s = max(due_s + plan.deadline_s - time.monotonic(), 0.0)
            answer = await senders[number % CONNECTIONS](message, timeout=left_s, metadata=metadata)
            place = places.setdefault(answer, len(places))
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        outcome.calls.append(Call(due_s, time.monotonic() - due_s, code, place))
        return code

    stopped = asyncio.get_running_loop().create_future()
    if plan.seconds == math.inf:
        stopped = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    cpu_s, started_s = time.process_time(), time.monotonic()
    await (_open_loop(plan, call, stopped) if plan.calls_per_s else _closed_loop(plan, call, stopped))
    outcome.busy = (time.process_time() - cpu_s) / (time.monotonic() - started_s)
    outcome.answers = list(places)
    for channel in channels:
        with suppress(grpc.aio.UsageError):
            await channel.close()
    return outcome


async def _open_loop(plan: Plan, call: _MakeCall, stopped: asyncio.Future[str]) -> None:
    generator = random.Random(plan.seed)  # noqa: S311 - arrival times
    running, due_s, number = set[asyncio.Task[str]](), time.monotonic(), 0
    end_s = due_s + plan.seconds
    while (due_s := due_s + generator.expovariate(plan.calls_per_s)) < end_s and not stopped.done():
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        task = asyncio.create_task(call(number, due_s))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    await asyncio.gather(*running)


async def _closed_loop(plan: Plan, call: _MakeCall, stopped: asyncio.Future[str]) -> None:
    end_s = time.monotonic() + plan.seconds

    async def caller(number: int) -> None:
        while (due_s := time.monotonic()) < end_s and not stopped.done():
            if await call(number, due_s) == "RESOURCE_EXHAUSTED":  # or it would only measure refusals
                await asyncio.sleep(_PAUSE_S)

    await asyncio.gather(*map(caller, range(plan.in_flight)))


def main() -> None:
    """Apply the plan, and print the outcome."""
    gc.set_threshold(*_COLLECT_YOUNG)
    outcome = asyncio.run(_apply(Plan(**json.loads(sys.stdin.readline()))))
    calls = [(each.due_s, each.latency_s, each.code, each.answer) for each in outcome.calls]
    answers = [each.hex() for each in outcome.answers]
    print(json.dumps({"calls": calls, "answers": answers, "busy": outcome.busy}))


if __name__ == "__main__":
    main()
