"""A call that is over leaves nothing behind, whatever ended it: no reference cycle, and no memory."""

import asyncio
import gc
import types
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

import serving
from serving.errors import EngineError, forget_frames
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.processes.memory_tuning import MOST_HELD, return_memory
from serving.rpc.bearer_tokens import Tokens
from tests.colours import Publish
from tests.servers import Serve, StartServer
from tests.serving.gated_server import GatedServer, ServeGated
from tests.serving.stub import Connect, Stub
from tests.serving.until import until

CLASSIFY = "lenserve.v1.Classifier/Classify"
STREAM = "lenserve.v1.Classifier/ClassifyStream"
OURS = str(Path(serving.__file__).parent)

_PIXELS = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=bytes(192)))
GOOD = pb.ClassifyRequest(model="colours", images=[_PIXELS])
# 768 kB, decoded in a thread.
LARGE = pb.ClassifyRequest(
    model="colours", images=[pb.Image(encoded=b"P6 512 500 255\n" + bytes(512 * 500 * 3))]
)
DAMAGED = pb.Image(encoded=bytes(10_000))  # too large to be decoded on the event loop


def _is_ours(found: object) -> bool:
    code = (
        getattr(found, "f_code", None) or getattr(found, "cr_code", None) or getattr(found, "ag_code", None)
    )
    if isinstance(code, types.CodeType):
        return code.co_filename.startswith(OURS)
    return type(found).__module__.startswith("serving.")


@asynccontextmanager
async def no_cycles(what: str) -> AsyncIterator[None]:
    """Assert that the garbage collector finds nothing of ours: references alone have freed it."""
    gc.collect()
    gc.disable()
    try:
        yield
        await until(lambda: not any(map(_is_serving, asyncio.all_tasks())))
        await asyncio.sleep(0.001)  # for the connections that close with them
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(_name(each) for each in gc.garbage if _is_ours(each))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found, what


def _is_serving(task: asyncio.Task[object]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    file = "" if code is None else code.co_filename
    return file.startswith(OURS) and "rpc_over_http" in file  # a call


def _name(found: object) -> str:
    code = getattr(found, "f_code", None)
    return f"{type(found).__name__} {code.co_qualname if isinstance(code, types.CodeType) else ''}"


async def _ended(call: Awaitable[object]) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call


async def _drained(answers: AsyncIterator[object]) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        async for _ in answers:
            pass


async def _several(
    request: pb.ClassifyRequest | bytes, *, then: float = 0.0
) -> AsyncIterator[Message | bytes]:
    for _ in range(3):
        yield request
    await asyncio.sleep(then)


async def _http1(port: int, request: bytes, *, waits: bool = True) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if waits:
        assert await reader.read(100)
    else:
        await writer.drain()
        await asyncio.sleep(0.005)  # the server has it, and waits for the rest
    writer.close()
    await writer.wait_closed()


def _post(body: bytes, *, kind: bytes = b"application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = b"POST /%s HTTP/1.1\r\nhost: a\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (CLASSIFY.encode(), kind, size) + body


async def late(stub: Stub, _port: int) -> None:
    """The deadline passes on the way, in the queue of a decoder, or while it decodes."""
    await asyncio.gather(*(_ended(stub.call(CLASSIFY, LARGE, timeout=0.003 * n)) for n in range(1, 6)))


async def cancelled(stub: Stub, _port: int) -> None:
    """The client cancels."""
    for pause_s in (0.0, 0.002, 0.004, 0.008):
        call = stub.start(CLASSIFY, LARGE)
        await asyncio.sleep(pause_s)
        call.cancel()
        await _ended(call)


async def refused(stub: Stub, _port: int) -> None:
    """Unknown models and methods, requests that cannot be parsed, images that cannot be decoded."""
    await _ended(stub.call(CLASSIFY, pb.ClassifyRequest(model="none", images=[_PIXELS])))
    await _ended(stub.start(CLASSIFY, b"\xff\xff"))
    await _ended(stub.call(CLASSIFY, pb.ClassifyRequest(model="colours", images=[pb.Image(encoded=b"x")])))
    await _ended(stub.call(CLASSIFY, pb.ClassifyRequest(model="colours", images=[DAMAGED])))
    await _ended(
        stub.call(CLASSIFY, pb.ClassifyRequest(model="colours", images=[DAMAGED, _PIXELS, pb.Image()]))
    )
    infer = "inference.GRPCInferenceService/ModelInfer"
    await _ended(stub.call(infer, oip.ModelInferRequest(model_name="colours")))


async def streams(stub: Stub, _port: int) -> None:
    """A stream ends, is late, is cancelled, or its messages are refused."""
    await _drained(stub.talk(STREAM, _several(GOOD)))
    await _drained(stub.talk(STREAM, _several(b"\xff\xff")))
    await _drained(stub.talk(STREAM, _several(pb.ClassifyRequest(model="colours", images=[DAMAGED]))))
    for timeout_s in (0.005, 0.02):
        await _drained(stub.talk(STREAM, _several(LARGE, then=1), timeout=timeout_s))
        call = stub.talk(STREAM, _several(LARGE, then=1))
        await asyncio.sleep(timeout_s)
        call.cancel()
        await _drained(call)


async def disconnected(_stub: Stub, port: int) -> None:
    """The client closes its connection, over HTTP/2 and HTTP/1.1."""
    for method, request in ((CLASSIFY, LARGE), (STREAM, LARGE)):
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        stub = Stub(channel)
        call = (
            stub.start(method, request)
            if method is CLASSIFY
            else stub.talk(method, _several(request, then=1))
        )
        await asyncio.sleep(0.01)
        await channel.close()
        await (_ended(call) if method is CLASSIFY else _drained(call))


async def web(_stub: Stub, port: int) -> None:
    """Connect and gRPC-Web: answered, invalid, half sent, of an unknown kind, not HTTP."""
    grpc_web = b"application/grpc-web+proto"
    good = GOOD.SerializeToString()
    await _http1(port, _post(good, kind=b"application/proto"))
    await _http1(port, _post(b"\0" + len(good).to_bytes(4, "big") + good, kind=grpc_web))
    for body in (b'{"', b'{"no": 1}', b'{"model": "none"}'):
        await _http1(port, _post(body))
    await _http1(port, _post(b"\0\0\0\0\x09x", kind=grpc_web))
    await _http1(port, _post(b"", kind=b"text/html"))
    await _http1(port, _post(b"{}").replace(b"Classify HTTP", b"None HTTP"))
    await _http1(port, _post(b"{}").replace(b"host: a", b"connect-timeout-ms: x"))
    await _http1(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await _http1(port, b"GET\r\n\r\n")
    await _http1(port, _post(b'{"model', length=1000), waits=False)
    await _http1(port, _post(b"\0\0\0\1\0x", kind=grpc_web, length=1000), waits=False)


Ending = Callable[[Stub, int], Awaitable[None]]


COMMON: tuple[Ending, ...] = (late, cancelled, refused, streams, disconnected)


@pytest.mark.parametrize(("transport", "endings"), [("h2", (*COMMON, web)), ("grpc", COMMON)])
async def test_calls_leave_no_cycles(
    transport: str, endings: Sequence[Ending], publish: Publish, serve: Serve, connect: Connect
) -> None:
    """References free what a call held: its request would otherwise stay until the collector runs."""
    publish()
    async with serve(transport=transport) as server:
        stub = connect(server.grpc.port)
        await stub.call(CLASSIFY, GOOD)
        for ending in endings:
            async with no_cycles(str(ending.__doc__)):
                await ending(stub, server.grpc.port)


async def test_connections_whose_handshake_fails_leave_no_cycles(
    publish: Publish, serve: Serve, certificates: Path
) -> None:
    """Plain text, and a client that leaves; calls over TLS do not either."""
    publish()
    files = {"tls_cert_file": certificates / "server.pem", "tls_key_file": certificates / "server.key"}
    async with serve(**files) as server:
        port = server.grpc.port
        credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            stub = Stub(channel)
            await stub.call(CLASSIFY, GOOD)
            async with no_cycles("TLS"):
                await late(stub, port)
                await cancelled(stub, port)
        async with no_cycles("no TLS"):
            await _http1(port, b"GET / HTTP/1.1\r\n\r\n", waits=False)
            await _http1(port, b"\x16\x03\x01\x00\xff", waits=False)


@pytest.fixture
async def gated(publish: Publish, serve_gated: ServeGated) -> AsyncIterator[GatedServer]:
    """A server whose network can be stopped and broken."""
    publish()
    async with serve_gated(tokens=Tokens({"secret": ["*"]}), max_images=4, max_pending_images=4) as server:
        yield server


async def test_calls_that_a_full_or_broken_server_refuses_leave_no_cycles(
    gated: GatedServer, connect: Connect
) -> None:
    """Failures of the network, single and in batches; no token; no room; late in the queue."""
    stub = connect(gated.grpc.port)
    secret = (("authorization", "Bearer secret"),)
    await stub.call(CLASSIFY, GOOD, metadata=secret)
    async with no_cycles("refused or failed"):
        await _ended(stub.call(CLASSIFY, GOOD))
        await _drained(stub.talk(STREAM, _several(GOOD)))
        gated.engine.close()
        four = pb.ClassifyRequest(model="colours", images=[_PIXELS] * 4)
        running = stub.start(CLASSIFY, four, metadata=secret)
        await asyncio.to_thread(gated.engine.entered.wait, 10)
        await _ended(stub.call(CLASSIFY, GOOD, metadata=secret))
        running.cancel()
        await _ended(running)
        waiting = [stub.start(CLASSIFY, four, metadata=secret, timeout=0.02) for _ in range(3)]
        await asyncio.gather(*map(_ended, waiting))
        gated.engine.gate.set()
        for error in (ZeroDivisionError("broken"), EngineError("broken")):
            gated.engine.error = error
            await asyncio.gather(*(_ended(stub.call(CLASSIFY, GOOD, metadata=secret)) for _ in range(3)))


def test_forgetting_frames_clears_the_whole_chain() -> None:
    """Causes and contexts hold frames too."""
    chain = [_raised(each) for each in (TypeError("outer"), ValueError("middle"), KeyError("inner"))]
    outer, middle, inner = chain
    outer.__context__, middle.__cause__ = middle, inner

    forget_frames(outer)

    assert [each.__traceback__ for each in chain] == [None] * 3
    assert outer.__context__ is middle.__cause__ is None


def _raised(error: Exception) -> Exception:
    with pytest.raises(type(error)):
        raise error
    assert error.__traceback__ is not None
    return error


async def test_memory_of_late_calls_returns_to_the_system(
    publish: Publish, start_server: StartServer
) -> None:
    """25 requests of 8 MB whose deadlines pass: at most 1.3 times the memory of before, within 10 s."""
    publish()
    server = start_server()
    statm = Path(f"/proc/{server.process.pid}/statm")
    large = b"P6 2000 1333 255\n" + bytes(2000 * 1333 * 3)
    request = pb.ClassifyRequest(model="colours", images=[pb.Image(encoded=large)])
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        stub = Stub(channel)
        await stub.call(CLASSIFY, request)
        before = _resident(statm)
        for _ in range(5):
            await asyncio.gather(*(_ended(stub.call(CLASSIFY, request, timeout=0.02)) for _ in range(5)))
        await until(lambda: _resident(statm) <= 1.3 * before, look_s=0.1)


def _resident(statm: Path) -> int:
    return int(statm.read_text().split()[1])


@pytest.fixture
def collections() -> Iterator[list[str]]:
    """The phases of garbage collections, as they happen."""
    phases: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        phases.append(phase)

    gc.callbacks.append(note)
    yield phases
    gc.callbacks.remove(note)


@pytest.mark.parametrize(("is_idle", "busy_s"), [(True, 3600), (False, 0)])
async def test_a_process_that_has_grown_collects_when_it_is_idle_or_has_waited_long(
    collections: list[str], *, is_idle: bool, busy_s: float
) -> None:
    """A growth of 0 bytes is enough here."""
    task = asyncio.create_task(return_memory(lambda: is_idle, look_s=0.001, busy_s=busy_s, grown_bytes=0))
    await until(lambda: bool(collections))
    task.cancel()


async def test_a_process_with_many_connections_does_not_collect(collections: list[str]) -> None:
    """It would stop all requests: 0.1 s with 4,000 connections, every second while they came."""
    gc.disable()
    try:
        task = asyncio.create_task(
            return_memory(lambda: True, lambda: 2 * MOST_HELD, look_s=0.001, grown_bytes=0)
        )
        await asyncio.sleep(0.02)
        assert not collections
        task.cancel()
    finally:
        gc.enable()


async def test_a_process_with_many_tasks_does_not_collect(collections: list[str]) -> None:
    """It would stop all requests: 0.3 s with 20,000 tasks."""
    gc.disable()
    try:
        held = [asyncio.create_task(asyncio.Event().wait()) for _ in range(2 * MOST_HELD)]
        task = asyncio.create_task(return_memory(lambda: True, look_s=0.001, grown_bytes=0))
        await asyncio.sleep(0.02)
        assert not collections
        for each in (task, *held):
            each.cancel()
    finally:
        gc.enable()


async def test_a_busy_process_does_not_collect(collections: list[str]) -> None:
    """Nor one that has not grown."""
    gc.disable()
    try:
        tasks = [
            asyncio.create_task(return_memory(lambda: False, look_s=0.001, grown_bytes=0)),
            asyncio.create_task(return_memory(lambda: True, look_s=0.001, grown_bytes=2**40)),
        ]
        await asyncio.sleep(0.02)
        assert not collections
        for task in tasks:
            task.cancel()
    finally:
        gc.enable()
