"""One worker's share of a load: sends requests over one connection and counts their outcomes.

Open-loop latencies are measured from the time a request was *due*. Measured from the time it was sent, a
stalled server would hide its own stall (coordinated omission).
"""

import asyncio
import itertools
import time

import grpc

from serving.bench.plan import ClosedLoop, Loop, OpenLoop
from serving.bench.points import OK, UNSENT, WorkerResult
from serving.bench.target import METHOD, Target
from serving.client.connection import channel_options

# Maximum unanswered requests of one worker, some kilobytes each; further arrivals are counted but not sent.
MOST_UNANSWERED = 4096

_CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # workers do not share connections


async def run_load(
    target: Target, loop: Loop, *, starts_at_s: float, warm_up_s: float, window_s: float, seed: int
) -> WorkerResult:
    """Apply a load, starting at a given time.monotonic(), and count outcomes.

    The window opens warm_up_s after the start. An open loop counts every request that is due in the window,
    even if it ends later; a closed loop counts every request that ends in the window.
    """
    options = [*channel_options(target.server), *_CHANNEL_OPTIONS]
    async with grpc.aio.insecure_channel(target.server, options=options) as channel:
        worker = _Worker(target, channel, opens_at_s=starts_at_s + warm_up_s, window_s=window_s)
        await asyncio.sleep(starts_at_s - time.monotonic())
        if isinstance(loop, ClosedLoop):
            await worker.run_closed(loop)
        else:
            await worker.run_open(loop, starts_at_s, warm_up_s + window_s, seed)
    return worker.result


class _Worker:
    """One connection and the outcomes so far; applies either kind of load."""

    def __init__(
        self, target: Target, channel: grpc.aio.Channel, *, opens_at_s: float, window_s: float
    ) -> None:
        self._target = target
        self._call = channel.unary_unary(METHOD)  # raw bytes: skips protobuf, because client CPU is scarce
        self._requests = itertools.cycle(target.requests)
        self._opens_at_s = opens_at_s
        self._closes_at_s = opens_at_s + window_s
        self.result = WorkerResult()

    async def run_closed(self, loop: ClosedLoop) -> None:
        """Run callers that each send the next request when the last is answered."""
        if not loop.concurrency:  # idle waiting of microseconds would count as CPU time
            return
        cpu_s = time.process_time()
        started_s = time.monotonic()
        callers = [asyncio.create_task(self._call_again()) for _ in range(loop.concurrency)]
        await asyncio.gather(*callers)
        self.result.busy = (time.process_time() - cpu_s) / (time.monotonic() - started_s)

    async def _call_again(self) -> None:
        while (sent_s := time.monotonic()) < self._closes_at_s:
            code = await self._classify(self._target.timeout_s)
            ended_s = time.monotonic()
            if self._opens_at_s <= ended_s < self._closes_at_s:
                self.result.count(code, ended_s - sent_s)

    async def run_open(self, loop: OpenLoop, starts_at_s: float, duration_s: float, seed: int) -> None:
        """Send each request when it is due, even if others are unanswered."""
        unanswered: set[asyncio.Task[None]] = set()
        cpu_s = time.process_time()
        for offset_s in loop.arrivals_s(duration_s, seed):
            due_s = starts_at_s + offset_s
            # Sleeps even when late: responses must still be read.
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            if len(unanswered) >= MOST_UNANSWERED:
                self._count_due(due_s, UNSENT, 0.0)
                continue
            task = asyncio.create_task(self._call_when_due(due_s))
            unanswered.add(task)
            task.add_done_callback(unanswered.discard)
        self.result.busy = (time.process_time() - cpu_s) / max(time.monotonic() - starts_at_s, 1e-9)
        await asyncio.gather(*unanswered)

    async def _call_when_due(self, due_s: float) -> None:
        sent_s = time.monotonic()
        if self._opens_at_s <= due_s:
            self.result.send_delays.add(sent_s - due_s)
        # The deadline counts from the due time: a request sent late has less time left.
        code = await self._classify(max(self._target.timeout_s - (sent_s - due_s), 0.0))
        self._count_due(due_s, code, time.monotonic() - due_s)

    def _count_due(self, due_s: float, code: str, latency_s: float) -> None:
        if self._opens_at_s <= due_s:
            self.result.count(code, latency_s)

    async def _classify(self, timeout_s: float) -> str:
        try:
            await self._call(next(self._requests), timeout=timeout_s, metadata=self._target.metadata)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return OK
