"""How calls and connections end: deadlines, lost clients, pings, and graceful stops."""

import asyncio
import json
import struct
import time
from functools import partial

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from tests.serving.transports.conformance.methods import Channels, Methods, failure_of
from tests.serving.transports.conformance.served import Differences, Serve, Served
from tests.serving.transports.raw_connection import RawConnection

NO_ERROR = 0


def _frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


@pytest.mark.parametrize("given", ["1n", "50m"])
@pytest.mark.parametrize("method", ["Wait", "WaitStream"])
async def test_the_server_enforces_the_deadline(served: Served, method: str, given: str) -> None:
    """A client that only waits gets the status, and the function is cancelled."""
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call(method, _frame(b""), ("grpc-timeout", given))
    assert reply.code == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(served.middleware.idle(), 10)


@pytest.mark.parametrize("method", ["Say", "Each", "Sum"])
async def test_a_deadline_counts_from_the_header_on(served: Served, method: str) -> None:
    """A client that sends nothing more does not keep the call open, and the call is counted."""
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open(method, ("grpc-timeout", "50m"))
        assert (await connection.reply(stream)).code == "DEADLINE_EXCEEDED"
    assert served.echo.calls["say"] == 0


async def test_a_deadline_in_the_middle_of_a_message_ends_the_call(served: Served) -> None:
    """A client that never sends the rest does not keep the call open."""
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open("Say", ("grpc-timeout", "50m"))
        await connection.send(stream, _frame(b"hello")[:7])
        reply = await connection.reply(stream)
    assert reply.code == "DEADLINE_EXCEEDED"
    assert served.echo.calls["say"] == 0


@pytest.mark.parametrize("method", ["Wait", "Each"])
async def test_a_lost_connection_cancels_its_calls(served: Served, method: str) -> None:
    """Without GOAWAY and RST_STREAM."""
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open(method)
        await connection.send(stream, _frame(b""), end=method == "Wait")
        await asyncio.wait_for(served.echo.begun.acquire(), 10)
        connection.drop()
        await asyncio.wait_for(served.echo.cancelled.acquire(), 10)
    await asyncio.wait_for(served.middleware.idle(), 10)


async def test_a_connection_lost_in_the_middle_of_a_message_makes_no_call(
    served: Served, methods: Methods
) -> None:
    """No function sees a part of a unary call's message, and other clients are served."""
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open("Say")
        await connection.send(stream, _frame(bytes(100))[:50])
        connection.drop()
    assert await methods.unary("Say")(BytesValue(value=b"1")) == BytesValue(value=b"1")
    assert served.echo.calls["say"] == 1


async def test_pings_are_answered_with_and_without_a_call(served: Served) -> None:
    """Keepalive works, also before any call."""
    async with RawConnection(served.server.port) as connection:
        connection.h2.ping(b"ping---0")
        await connection.flush()
        await connection.read_until(lambda: b"ping---0" in connection.pongs)
        stream = await connection.open("Wait")
        await connection.send(stream, _frame(b""), end=True)
        await asyncio.wait_for(served.echo.begun.acquire(), 10)
        for ping in (b"ping---1", b"ping---2"):
            connection.h2.ping(ping)
            await connection.flush()
            await connection.read_until(partial(connection.pongs.__contains__, ping))
        served.echo.may_end.set()
        assert (await connection.reply(stream)).code == "OK"


async def test_a_client_that_pings_every_second_stays_connected(served: Served) -> None:
    """Also without a call. Pings that come together, after a pause of the network, are no reason either."""
    async with RawConnection(served.server.port) as connection:
        for number in range(20):
            ping = b"ping%4d" % number
            connection.h2.ping(ping)
            await connection.flush()
            await connection.read_until(partial(connection.pongs.__contains__, ping))
        assert connection.goaways == []
        assert (await connection.call("Say", _frame(b""))).code == "OK"


async def test_no_call_of_thousands_at_once_ends_without_a_reason(served: Served, channels: Channels) -> None:
    """Each gets its answer, however many wait for the server's event loop."""
    every = [channels(served, ("grpc.use_local_subchannel_pool", 1)) for _ in range(4)]
    calls = [each.unary("Say")(BytesValue(value=b"1"), timeout=60) for each in every for _ in range(500)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(each) for each in outcomes if isinstance(each, BaseException)} == set()


async def test_a_client_that_resets_its_calls(served: Served) -> None:
    """All calls are cancelled; the connection stays, and other clients are not affected."""
    async with RawConnection(served.server.port) as connection, RawConnection(served.server.port) as other:
        for _ in range(1000):
            connection.h2.reset_stream(await connection.open("Each"))
        connection.h2.ping(b"ping---0")
        await connection.flush()
        await connection.read_until(lambda: bool(connection.pongs))
        assert connection.goaways == []
        assert (await connection.call("Say", _frame(b""))).code == "OK"
        assert (await other.call("Say", _frame(b""))).code == "OK"
    await asyncio.wait_for(served.middleware.idle(), 10)


async def test_a_stream_that_is_rejected_at_once_gets_the_reason(methods: Methods) -> None:
    """Always, even if the client is about to send its first message."""
    unknown = methods.channel.stream_stream("/tests.Nobody/Each")
    for _ in range(50):
        error = await failure_of(unknown(iter([b"1"])))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    for _ in range(50):
        call = methods.stream("Refuse")(iter([BytesValue(value=b"1")]))
        assert (await failure_of(call)).code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", ["Refuse", "Nowhere"])
async def test_the_status_of_a_rejected_stream_comes_after_its_first_message(
    served: Served, method: str
) -> None:
    """grpc.aio's client reports INTERNAL if it writes its first message to a stream that has ended."""
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open(method)
        for _ in range(20):  # the server has had its time
            connection.pongs.clear()
            connection.h2.ping(b"ping---0")
            await connection.flush()
            await connection.read_until(lambda: bool(connection.pongs))
        assert not connection.replies[stream].has_ended
        started_s = time.monotonic()
        await connection.send(stream, _frame(b""))
        assert (await connection.reply(stream)).code in {"UNAUTHENTICATED", "UNIMPLEMENTED"}
        assert time.monotonic() - started_s < 0.09  # it does not wait for more


@pytest.mark.parametrize("size", [10, 50_000, 900_000])
async def test_a_full_server_says_so_for_every_call_of_a_connection(methods: Methods, size: int) -> None:
    """Even if most of the request is unread, no call ends in another way, and the connection stays."""
    for _ in range(30):
        errors = await asyncio.gather(
            *(failure_of(methods.unary("Full")(BytesValue(value=bytes(size)))) for _ in range(10))
        )
        assert {(error.code(), error.details()) for error in errors} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        }


async def test_a_client_that_sends_nothing_is_rejected_too(served: Served, differences: Differences) -> None:
    """The status does not wait for its first message."""
    async with RawConnection(served.server.port) as connection:
        rejected = {
            "Refuse": "UNAUTHENTICATED",
            "Nowhere": "UNIMPLEMENTED",
            "Full": "RESOURCE_EXHAUSTED",
        }
        for method, code in rejected.items():
            if method == "Full" and not differences.admits_before_reading:
                continue
            assert (await connection.reply(await connection.open(method))).code == code


class TestStop:
    """A graceful stop."""

    async def test_running_calls_end_completely_and_goaway_is_sent(
        self, served: Served, methods: Methods
    ) -> None:
        """Answers of any size arrive; then comes GOAWAY without an error."""
        large = BytesValue(value=bytes(900_000))
        calls = [methods.unary("Wait")(large) for _ in range(8)]
        async with RawConnection(served.server.port) as connection:
            stream = await connection.open("Wait")
            await connection.send(stream, _frame(b""), end=True)
            for _ in range(9):
                await asyncio.wait_for(served.echo.begun.acquire(), 10)
            stopping = asyncio.create_task(served.server.stop(until=served.middleware.drain, timeout_s=20))
            await asyncio.sleep(0)
            assert not stopping.done()
            served.echo.may_end.set()
            assert await asyncio.gather(*calls) == [large] * 8
            assert (await connection.reply(stream)).code == "OK"
            await connection.read_until(lambda: bool(connection.goaways))
            await stopping
        assert connection.goaways[0] == NO_ERROR

    async def test_new_calls_are_rejected_so_that_clients_use_another_server(
        self, serve: Serve, channels: Channels, differences: Differences
    ) -> None:
        """Two servers and a client with our retries: one stops under load, and no call fails."""
        unlucky = {grpc.StatusCode.CANCELLED} if differences.may_cancel_at_stop else set()
        async with serve() as staying, serve() as leaving:
            policy = {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
            config = {
                "loadBalancingConfig": [{"round_robin": {}}],
                "methodConfig": [{"name": [{"service": "tests.Echo"}], "retryPolicy": policy}],
            }
            both = f"ipv4:{staying.address},{leaving.address}"
            options = (("grpc.service_config", json.dumps(config)), ("grpc.default_authority", "tests"))
            say = channels(both, *options).unary("Say")
            answered = asyncio.Semaphore(0)
            is_over = False

            async def call_on() -> None:
                while not is_over:
                    try:
                        await say(BytesValue(value=b"1"), timeout=20)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in unlucky:
                            raise
                    else:
                        answered.release()

            callers = [asyncio.create_task(call_on()) for _ in range(8)]
            for _ in range(80):
                await asyncio.wait_for(answered.acquire(), 20)
            assert leaving.echo.calls["say"]
            await leaving.server.stop(until=leaving.middleware.drain, timeout_s=20)
            for _ in range(80):
                await asyncio.wait_for(answered.acquire(), 20)
            is_over = True
            await asyncio.gather(*callers)

    async def test_calls_that_still_wait_for_the_event_loop_are_answered_or_rejected_with_a_reason(
        self, served: Served, channels: Channels
    ) -> None:
        """An overloaded server that stops hands no call back as CANCELLED."""
        every = [channels(served, ("grpc.use_local_subchannel_pool", 1)) for _ in range(3)]
        for each in every:
            await each.unary("Say")(BytesValue(value=b"1"))
        calls = [each.unary("Say")(BytesValue(value=b"1"), timeout=60) for each in every for _ in range(600)]
        outcomes = asyncio.gather(*calls, return_exceptions=True)
        while served.echo.calls["say"] < 10:  # noqa: ASYNC110 - the others are on their way
            await asyncio.sleep(0)
        await served.server.stop(until=served.middleware.drain, timeout_s=20)
        codes = {each.code().name for each in await outcomes if isinstance(each, grpc.aio.AioRpcError)}
        assert codes <= {"UNAVAILABLE"}

    async def test_calls_beyond_the_time_limit_are_cut(self, served: Served, methods: Methods) -> None:
        """A call that never ends cannot block a stop, and its client may retry."""
        call = methods.unary("Wait")(BytesValue())
        await asyncio.wait_for(served.echo.begun.acquire(), 10)
        started_s = time.monotonic()
        await served.server.stop(until=served.middleware.drain, timeout_s=0.1)
        assert (await failure_of(call)).code().name == "UNAVAILABLE"
        assert time.monotonic() - started_s < 5
        await asyncio.wait_for(served.echo.cancelled.acquire(), 10)
        await asyncio.wait_for(served.middleware.idle(), 10)

    async def test_open_streams_are_cut_when_the_calls_are_done(
        self, served: Served, methods: Methods
    ) -> None:
        """A stream that its client keeps open does not use up the time limit of a stop."""
        call = methods.stream("Each")()
        await call.write(BytesValue(value=b"1"))
        assert (await call.read()).value == b"1"
        started_s = time.monotonic()
        await served.server.stop(until=served.middleware.drain, timeout_s=60)
        assert time.monotonic() - started_s < 10
        assert (await call.code()).name == "UNAVAILABLE"

    async def test_a_stopped_server_accepts_no_connections(self, served: Served) -> None:
        """Its port is released."""
        await served.server.stop(until=served.middleware.drain, timeout_s=20)
        with pytest.raises(ConnectionRefusedError):
            async with RawConnection(served.server.port):
                pass

    async def test_it_leaves_no_task(self, serve: Serve, channels: Channels) -> None:
        """After answered, cancelled and open calls, with and without `stop`."""
        before = asyncio.all_tasks()
        for is_stopped in (True, False):
            async with serve() as served:
                methods = channels(served)
                await methods.unary("Say")(BytesValue())
                running = methods.unary("Wait")(BytesValue())
                await asyncio.wait_for(served.echo.begun.acquire(), 10)
                running.cancel()
                if is_stopped:
                    await served.server.stop(until=served.middleware.drain, timeout_s=5)
            await methods.channel.close()
        left = asyncio.all_tasks() - before
        if left:
            _, left = await asyncio.wait(left, timeout=10)
        assert not left
