"""Clients of a server that has a bad day: callers with and without retries, and its probes."""

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.client.client import AsyncClient
from serving.client.connection import BaseClient, channel_options
from tests.chaos.day_server import MODELS

CALLERS = 8  # of each kind, each on a connection of its own
CALLS_PER_S = 10  # of each caller
DEADLINE_S = 10.0
LATE_S = 1.0  # a call that takes longer is not normal
_PROBE_INTERVAL_S = 0.1
_PROBE_TIMEOUT_S = 1.0  # as Kubernetes' default

RED = np.zeros((8, 8, 3), np.uint8)
RED[..., 0] = 255


@dataclass(frozen=True, slots=True)
class Call:
    """One call, with times of time.monotonic()."""

    due_s: float
    ended_s: float
    problem: str  # empty: the right answer


@dataclass(frozen=True, slots=True)
class Probe:
    """One answer of a probe."""

    path: str
    asked_s: float
    code: int  # 0: no answer within a second
    body: str


@dataclass(slots=True)
class Observations:
    """What the clients saw so far."""

    plain: list[Call] = field(default_factory=list)  # each call is tried once
    retrying: list[Call] = field(default_factory=list)  # by the Python client, as shipped
    probes: list[Probe] = field(default_factory=list)


class _SeparateClient(AsyncClient):
    """The Python client on a connection of its own: channels of one process share one otherwise."""

    def __init__(self, server: str, *, attempts: int | None) -> None:
        options = [*channel_options(server), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(server, options=options)
        BaseClient.__init__(self, channel, token=None, timeout_s=DEADLINE_S, attempts=attempts, on_retry=None)


@asynccontextmanager
async def observing(grpc_server: str, http_server: str) -> AsyncIterator[Observations]:
    """Call and probe until the end of the block; waits for the last answers."""
    seen, done = Observations(), asyncio.Event()
    tasks = [
        asyncio.create_task(_call(grpc_server, calls, done, number=number, attempts=attempts))
        for calls, attempts in ((seen.plain, 1), (seen.retrying, None))
        for number in range(CALLERS)
    ]
    tasks += [
        asyncio.create_task(_probe(http_server, path, seen.probes, done)) for path in ("/livez", "/readyz")
    ]
    try:
        yield seen
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def _call(
    server: str, calls: list[Call], done: asyncio.Event, *, number: int, attempts: int | None
) -> None:
    """Call at a fixed rate: a call is due whether or not the one before has ended."""
    async with _SeparateClient(server, attempts=attempts) as client:
        running = set[asyncio.Task[None]]()
        due_s = time.monotonic() + number / CALLERS / CALLS_PER_S
        while not done.is_set():
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(_call_once(client, calls, due_s, MODELS[number % len(MODELS)]))
            running.add(task)
            task.add_done_callback(running.discard)
            due_s += 1 / CALLS_PER_S
        await asyncio.gather(*running)


async def _call_once(client: AsyncClient, calls: list[Call], due_s: float, model: str) -> None:
    problem = ""
    try:
        answer = await client.classify(RED, model=model)
        if answer.top.label != "red":
            problem = f"wrong label {answer.top.label}"
    except Exception as error:  # noqa: BLE001 - any failure is a lost call
        code = getattr(error, "code", None)
        problem = str(code() if callable(code) else code or type(error).__name__)
    calls.append(Call(due_s, time.monotonic(), problem))


async def _probe(server: str, path: str, probes: list[Probe], done: asyncio.Event) -> None:
    while not done.is_set():
        asked_s = time.monotonic()
        code, body = await asyncio.to_thread(fetch, f"http://{server}{path}")
        probes.append(Probe(path, asked_s, code, body.strip()))
        await asyncio.sleep(_PROBE_INTERVAL_S)


def fetch(url: str) -> tuple[int, str]:
    """Return the status and the body; status 0 without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:  # noqa: S310 - ours
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code), error.read().decode()
    except OSError:
        return 0, "no answer"


def lost(calls: Sequence[Call], *, since_s: float) -> list[Call]:
    """The calls without the right answer that were due, or had not ended, after a moment."""
    return [call for call in calls if call.problem and call.ended_s >= since_s]


def normal_after_s(calls: Sequence[Call], *, since_s: float) -> float:
    """Seconds from a moment until the last call that failed or was late was due; 0 if there was none."""
    bad = [
        call.due_s
        for call in calls
        if call.ended_s >= since_s and (call.problem or call.ended_s - call.due_s > LATE_S)
    ]
    return max([since_s, *bad]) - since_s
