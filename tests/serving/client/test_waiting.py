"""`wait_ready` of both clients against real servers: when it ends, and what it says until then."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from serving.bundle import Repository
from serving.client.client import AsyncClient, CallFailed, Client
from serving.client.connection import not_ready
from serving.errors import InvalidRequest
from serving.pb.inference import grpc_service_pb2 as inference
from serving.server import Server
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import GatedServer, ServeGated

ATTEMPTS = 3

AnyClient = type[Client | AsyncClient]
both_clients = pytest.mark.parametrize("kind", [Client, AsyncClient])


def _address(server: Server | GatedServer) -> str:
    return f"127.0.0.1:{server.grpc.port}"


async def _wait_ready(client: Client | AsyncClient, model: str, timeout_s: float = 30) -> None:
    if isinstance(client, AsyncClient):
        async with client:
            await client.wait_ready(model, timeout_s=timeout_s)
    else:
        with client:
            await asyncio.to_thread(client.wait_ready, model, timeout_s=timeout_s)


class _Attempts:
    """The failures of a client's attempts, each known to the event loop."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def __call__(self, failure: CallFailed, _pause_s: float) -> None:
        """Note an attempt; called in any thread."""
        self._loop.call_soon_threadsafe(self._note, failure.message)

    def _note(self, message: str) -> None:
        self.messages.append(message)
        self._news.set()

    async def until(self, is_true: Callable[[list[str]], bool]) -> None:
        """Wait for an attempt after which this is true of all messages."""
        async with asyncio.timeout(20):
            while not is_true(self.messages):
                self._news.clear()
                await self._news.wait()


@both_clients
@pytest.mark.parametrize("model", ["", "colours", "colours@1", "colours@stable"])
async def test_a_client_can_wait_until_a_server_and_a_model_are_ready(
    publish: Publish, serve_gated: ServeGated, repository: Repository, kind: AnyClient, model: str
) -> None:
    """The wait ends when the model is loaded, and not before."""
    publish()
    repository.set_alias("colours", "stable", 1)
    async with serve_gated(scanned=False) as server:
        attempts = _Attempts()
        waiting = asyncio.create_task(_wait_ready(kind(_address(server), on_retry=attempts), model))
        await attempts.until(bool)
        assert not waiting.done()
        server.loads.set()
        await asyncio.wait_for(waiting, 10)
    reason = ": model 'colours' is not loaded yet: the server is starting"
    assert attempts.messages[0] == (
        f"model {model!r} is not ready{reason}" if model else "the server is not ready"
    )


@both_clients
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("shapes", "there is no model 'shapes'; known models: colours, lies"),
        (
            "colours@2",
            (
                "version 2 of model 'colours' is not served; served versions: 1; if it is published, "
                "promote it (`lenserve models promote colours@2`), or give it an alias"
            ),
        ),
        ("colours@canary", "model 'colours' has no alias 'canary'; known aliases: stable"),
        ("lies@1", "version 1 of model 'lies' was refused: golden probabilities differ by"),
        ("lies", "model 'lies' has no version that can answer: version 1 was refused: golden probabilities"),
    ],
)
async def test_a_model_that_does_not_get_ready_is_reported_with_the_reason(
    *, publish: Publish, serve: Serve, repository: Repository, kind: AnyClient, model: str, reason: str
) -> None:
    """From the first attempt on, and at the end of the wait."""
    publish()
    publish()
    publish("lies", lie=True)
    repository.set_alias("colours", "stable", 1)
    async with serve() as server:
        attempts = _Attempts()
        with pytest.raises(CallFailed) as caught:
            await _wait_ready(kind(_address(server), on_retry=attempts), model, timeout_s=1.0)
        await attempts.until(bool)

    why = f"model {model!r} is not ready: {reason}"
    assert attempts.messages[0].startswith(why)
    assert f"UNAVAILABLE: {why}" in str(caught.value)  # after DEADLINE_EXCEEDED, if it ends during an attempt


@both_clients
async def test_the_wait_for_a_candidate_ends_with_its_promotion(
    publish: Publish, serve: Serve, repository: Repository, kind: AnyClient
) -> None:
    """What the server does not serve now may be published or promoted a moment later."""
    publish()
    repository.set_alias("colours", "stable", 1)
    async with serve() as server:
        attempts = _Attempts()
        waiting = asyncio.create_task(_wait_ready(kind(_address(server), on_retry=attempts), "colours@2"))
        await attempts.until(bool)
        publish()
        repository.set_alias("colours", "stable", 2)
        await asyncio.wait_for(waiting, 20)


class _OtherServer:
    """Another server of the protocol: its model gets ready after some attempts, and it gives no reason."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code
        self.calls: list[str] = []

    async def ready(
        self, _request: inference.ModelReadyRequest, _context: grpc.aio.ServicerContext
    ) -> inference.ModelReadyResponse:
        """Return whether it was asked often enough."""
        self.calls.append("ready")
        return inference.ModelReadyResponse(ready=self.calls.count("ready") > ATTEMPTS)

    async def metadata(
        self, _request: inference.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> inference.ModelMetadataResponse:
        """Refuse."""
        self.calls.append("metadata")
        await context.abort(self._code, "none of your business")
        raise AssertionError

    def handlers(self) -> grpc.GenericRpcHandler:
        """Its two methods."""
        ready = grpc.unary_unary_rpc_method_handler(
            self.ready,
            inference.ModelReadyRequest.FromString,
            inference.ModelReadyResponse.SerializeToString,
        )
        metadata = grpc.unary_unary_rpc_method_handler(
            self.metadata,
            inference.ModelMetadataRequest.FromString,
            inference.ModelMetadataResponse.SerializeToString,
        )
        methods = {"ModelReady": ready, "ModelMetadata": metadata}
        return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)


@both_clients
@pytest.mark.parametrize("code", ["NOT_FOUND", "PERMISSION_DENIED", "UNAVAILABLE", "UNIMPLEMENTED"])
async def test_without_a_reason_the_wait_goes_on(kind: AnyClient, code: str) -> None:
    """Another server, or a proxy, refuses to say more: it is asked once for each attempt."""
    other = _OtherServer(grpc.StatusCode[code])
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((other.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    attempts = _Attempts()
    try:
        await _wait_ready(kind(f"127.0.0.1:{port}", on_retry=attempts), "colours")
    finally:
        await server.stop(None)
    await attempts.until(lambda messages: len(messages) == ATTEMPTS)

    assert attempts.messages == [not_ready("colours").message] * ATTEMPTS
    assert other.calls == ["ready", "metadata"] * ATTEMPTS + ["ready"]


@both_clients
async def test_a_name_that_is_no_text_is_an_invalid_request(kind: AnyClient) -> None:
    """As it is for `classify`; no server is asked."""
    with pytest.raises(InvalidRequest, match="is not text in UTF-8: name a model of the server"):
        await _wait_ready(kind("127.0.0.1:1"), "a\udcff")


@both_clients
async def test_a_name_that_ends_with_an_at_sign_is_an_invalid_request(kind: AnyClient) -> None:
    """A version is missing, and any other one would be a surprise; so it is for `classify`."""
    with pytest.raises(
        InvalidRequest, match="'a@' names no version or alias after the @: add it, or use 'a'"
    ):
        await _wait_ready(kind("127.0.0.1:1"), "a@")
    with pytest.raises(InvalidRequest, match="names no version or alias"):
        Client("127.0.0.1:1").classify(b"", model="a@")
