"""One worker's loops against real gRPC servers: what is counted, and that stalls are measured."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from serving.bench import load
from serving.bench.load import run_load
from serving.bench.plan import ClosedLoop, Loop, OpenLoop
from serving.bench.points import OK, UNSENT, WorkerResult
from serving.bench.target import METHOD, Target, prepare
from serving.server import Server
from tests.colours import Publish
from tests.servers import Serve

Answer = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


async def _nothing(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    return b""


@asynccontextmanager
async def _serving(answer: Answer) -> AsyncIterator[Target]:
    """A real gRPC server with one method."""
    _, service, method = METHOD.split("/")
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Target(f"127.0.0.1:{port}", (b"first", b"second"), timeout_s=5.0)
    finally:
        await server.stop(None)


async def _run(target: Target, loop: Loop, *, window_s: float = 0.3, warm_up_s: float = 0.0) -> WorkerResult:
    return await run_load(
        target, loop, starts_at_s=time.monotonic(), warm_up_s=warm_up_s, window_s=window_s, seed=0
    )


async def test_a_closed_loop_keeps_its_callers_busy_and_no_more() -> None:
    """The server sees exactly this concurrency, requests in turn; every response is counted."""
    in_flight, most, seen = 0, 0, Counter[bytes]()
    all_have_come = asyncio.Event()

    async def answer(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        seen[request] += 1
        if in_flight == 7:
            all_have_come.set()
        await all_have_come.wait()
        await asyncio.sleep(0.001)
        in_flight -= 1
        return b""

    async with _serving(answer) as target:
        tally = await _run(target, ClosedLoop(7))
    assert most == 7
    assert abs(seen[b"first"] - seen[b"second"]) <= 1
    assert set(tally.outcomes) == {OK}
    assert seen.total() - 7 <= tally.outcomes[OK] <= seen.total()  # those that ended after the window
    assert tally.latencies.count == tally.outcomes[OK]
    assert tally.latencies.quantile_s(0.001) >= 0.001


async def test_a_worker_without_callers_is_not_busy() -> None:
    """With more workers than callers, some workers have none."""
    async with _serving(_nothing) as target:
        tally = await _run(target, ClosedLoop(1).share(1, 2))
    assert (tally.busy, tally.outcomes.total()) == (0.0, 0)


async def test_errors_are_counted_by_code_and_have_no_latency() -> None:
    """Rejections are fast, and must not lower the latency of successful requests."""
    number = 0

    async def answer(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        nonlocal number
        number += 1
        if number % 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return b""

    async with _serving(answer) as target:
        tally = await _run(target, ClosedLoop(1))
    assert set(tally.outcomes) == {OK, "RESOURCE_EXHAUSTED"}
    assert abs(tally.outcomes[OK] - tally.outcomes["RESOURCE_EXHAUSTED"]) <= 1
    assert tally.latencies.count == tally.outcomes[OK]


async def test_a_stall_of_the_server_delays_all_requests_that_are_due_during_it() -> None:
    """Coordinated omission: a server that stops for half of the window cannot hide it from an open loop.

    A closed loop of one caller sees the same stall once; of what is due in the open loop about half waits, a
    quarter of it longer than half of the stall.
    """
    stall_s = 0.4

    def stalling() -> Answer:
        resumes_at_s: float | None = None

        async def answer(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            nonlocal resumes_at_s
            if resumes_at_s is None:
                resumes_at_s = time.monotonic() + stall_s
            await asyncio.sleep(resumes_at_s - time.monotonic())
            return b""

        return answer

    async with _serving(stalling()) as target:
        opened = await _run(target, OpenLoop(300.0), window_s=2 * stall_s)
    async with _serving(stalling()) as target:
        closed = await _run(target, ClosedLoop(1), window_s=2 * stall_s)
    assert opened.latencies.quantile_s(0.80) > stall_s / 2
    assert opened.latencies.quantile_s(0.99) > stall_s * 0.9
    assert closed.latencies.quantile_s(0.80) < stall_s / 10


async def test_an_open_loop_offers_its_rate_to_a_slow_server() -> None:
    """All scheduled requests arrive, although none is answered within the window."""
    release = asyncio.Event()
    arrived = 0
    expected = len(list(OpenLoop(200.0).arrivals_s(0.5, 0)))

    async def answer(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == expected:
            release.set()
        await release.wait()
        return b""

    async with _serving(answer) as target:
        tally = await _run(target, OpenLoop(200.0), window_s=0.5)
    assert arrived == expected
    assert tally.outcomes == {OK: expected}


async def test_the_warm_up_does_not_count() -> None:
    """Requests due before the window are sent but not counted."""
    arrived = 0

    async def answer(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        nonlocal arrived
        arrived += 1
        return b""

    schedule = list(OpenLoop(300.0).arrivals_s(0.4, 0))
    async with _serving(answer) as target:
        tally = await _run(target, OpenLoop(300.0), warm_up_s=0.2, window_s=0.2)
    assert arrived == len(schedule)
    assert tally.outcomes[OK] == sum(due_s >= 0.2 for due_s in schedule)


async def test_unanswered_requests_end_at_the_deadline_and_are_bounded() -> None:
    """A server that never answers costs a bounded number of requests and a bounded time."""

    async def answer(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.Event().wait()
        return b""

    most, load.MOST_UNANSWERED = load.MOST_UNANSWERED, 10
    try:
        async with _serving(answer) as target:
            impatient = Target(target.server, target.requests, timeout_s=0.3)
            tally = await _run(impatient, OpenLoop(200.0), window_s=0.2)
    finally:
        load.MOST_UNANSWERED = most
    assert tally.outcomes["DEADLINE_EXCEEDED"] == 10
    assert tally.outcomes[UNSENT] == len(list(OpenLoop(200.0).arrivals_s(0.2, 0))) - 10
    assert OK not in tally.outcomes


async def test_our_own_server_answers(serve: Serve, publish: Publish) -> None:
    """The encoded request is valid; test_cli.py has whole runs."""
    publish()
    async with serve() as server:
        assert isinstance(server, Server)
        address = f"127.0.0.1:{server.grpc.port}"
        target, answered = await asyncio.to_thread(prepare, address, "colours", [], timeout_s=5.0)
        tally = await _run(target, ClosedLoop(2))
        done = server.metrics.images.labels("colours", "1", "OK").value
    assert (answered.model, answered.version) == ("colours", 1)
    assert set(tally.outcomes) == {OK}
    assert done >= tally.outcomes[OK] > 0
