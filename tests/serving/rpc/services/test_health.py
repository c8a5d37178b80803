"""grpc.health.v1 over a real channel: the server and each model, now and as they change."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.bundle import Repository
from serving.errors import UnknownModel
from serving.rpc.routes import Call
from serving.rpc.services.health import HealthService
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.counting_turns import CountingTurns
from tests.serving.gated_server import ServeGated
from tests.serving.stub import Connect

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
CHECK = "grpc.health.v1.Health/Check"
LIST = "grpc.health.v1.Health/List"
WATCH = "grpc.health.v1.Health/Watch"


def _request(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def _next(watch: grpc.aio.UnaryStreamCall) -> int:
    async with asyncio.timeout(10):
        response = await watch.read()
    assert response is not grpc.aio.EOF
    return int(response.status)


@pytest.mark.parametrize(
    "service", ["", "lenserve.v1.Classifier", "inference.GRPCInferenceService", "colours"]
)
async def test_the_server_its_services_and_its_models_are_serving(
    publish: Publish, serve: Serve, connect: Connect, service: str
) -> None:
    """The empty name and the names of our services mean the server."""
    publish()
    async with serve() as server:
        answer = await connect(server.grpc.port).call(CHECK, _request(service))

    assert answer.status == SERVING


async def test_an_unknown_name_is_not_found(serve: Serve, connect: Connect) -> None:
    """As the protocol specifies."""
    async with serve() as server:
        refusal = await connect(server.grpc.port).refusal(CHECK, _request("shapes"))

    assert (refusal.code, refusal.message) == ("NOT_FOUND", "there is no service or model 'shapes'")


async def test_a_model_that_was_refused_is_not_serving(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """A model without a ready version is NOT_SERVING; other models are not affected."""
    publish("colours")
    publish("liars", lie=True)
    async with serve() as server:
        stub = connect(server.grpc.port)
        statuses = [(await stub.call(CHECK, _request(name))).status for name in ("colours", "liars", "")]

    assert statuses == [SERVING, NOT_SERVING, SERVING]


async def test_a_starting_server_is_not_serving(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Until the first scan of the repository has ended; Watch reports that."""
    publish()
    async with serve_gated(scanned=False) as server:
        stub = connect(server.grpc.port)
        watch = stub.stream(WATCH, _request(""))
        before = await _next(watch)
        model = (await stub.call(CHECK, _request("colours"))).status
        server.loads.set()
        after = await _next(watch)

    assert (before, model, after) == (NOT_SERVING, NOT_SERVING, SERVING)


async def test_watch_reports_that_a_model_appears_and_disappears(
    publish: Publish, serve: Serve, connect: Connect, repository: Repository
) -> None:
    """An unknown name is SERVICE_UNKNOWN and the stream stays open; every change is sent once."""
    publish("another")  # an empty repository would be taken for a missing volume
    async with serve() as server:
        watch = connect(server.grpc.port).stream(WATCH, _request("colours"))
        sent = [await _next(watch)]
        publish()
        sent.append(await _next(watch))
        if sent[-1] == NOT_SERVING:  # sent while it was loading
            sent[-1] = await _next(watch)
        (repository.root / "colours").rename(repository.root.parent / "elsewhere")
        sent.append(await _next(watch))

    assert sent == [SERVICE_UNKNOWN, SERVING, SERVICE_UNKNOWN]


async def test_a_new_version_in_the_background_changes_nothing(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """A model stays SERVING while its versions are swapped: Watch sends nothing until the server drains."""
    publish()
    async with serve() as server:
        stub = connect(server.grpc.port)
        watch = stub.stream(WATCH, _request("colours"))
        sent = [await _next(watch)]
        publish(rotate=1)
        while server.models.get("colours").default != 2:
            await server.models.change.wait()
        server.models.drain()
        sent.append(await _next(watch))

    assert sent == [SERVING, NOT_SERVING]


async def test_all_names_are_listed_with_their_status(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """The server under the empty name, its services, and its models."""
    publish()
    publish("liars", lie=True)
    async with serve() as server:
        answer = await connect(server.grpc.port).call(LIST, health_pb2.HealthListRequest())

    services = ("", "inference.GRPCInferenceService", "lenserve.v1.Classifier")
    assert {name: each.status for name, each in answer.statuses.items()} == {
        **dict.fromkeys((*services, "colours"), SERVING),
        "liars": NOT_SERVING,
    }


async def test_models_are_listed_for_their_tokens(
    publish: Publish, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """As for Check: the server needs no token, a model needs one that allows it."""
    publish("colours")
    publish("shapes")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[tokens]\n"abc" = ["shapes"]\n"all" = ["*"]\n')
    listed = []
    async with serve(token_file=tokens) as server:
        stub = connect(server.grpc.port)
        for token in ("", "abc", "all"):
            answer = await stub.call(LIST, health_pb2.HealthListRequest(), metadata=_bearer(token))
            listed.append({name for name in answer.statuses if "." not in name} - {""})
            assert answer.statuses[""].status == SERVING

    assert listed == [set(), {"shapes"}, {"colours", "shapes"}]


@pytest.mark.parametrize(
    ("after", "code"), [('"other" = ["*"]', "UNAUTHENTICATED"), ('"abc" = ["shapes"]', "PERMISSION_DENIED")]
)
async def test_a_watch_ends_with_its_token(
    *, publish: Publish, serve: Serve, connect: Connect, tmp_path: Path, after: str, code: str
) -> None:
    """When the token file changes. A watch of the server needs no token, and goes on."""
    publish()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[tokens]\n"abc" = ["colours"]\n')
    async with serve(token_file=tokens) as server:
        stub = connect(server.grpc.port)
        model = stub.stream(WATCH, _request("colours"), metadata=_bearer("abc"))
        whole = stub.stream(WATCH, _request(""), metadata=_bearer("abc"))
        assert [await _next(model), await _next(whole)] == [SERVING, SERVING]
        tokens.write_text('[tokens]\n"unrelated" = ["*"]\n"abc" = ["colours", "more"]\n')
        await asyncio.to_thread(server.files[0].look)
        tokens.write_text(f"[tokens]\n{after}\n")
        await asyncio.to_thread(server.files[0].look)
        async with asyncio.timeout(10):
            assert (await model.code()).name == code
        server.models.drain()
        assert await _next(whole) == NOT_SERVING


def _bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")] if token else []


async def test_draining_ends_every_watch(publish: Publish, serve: Serve, connect: Connect) -> None:
    """A server that stops sends NOT_SERVING, then ends the stream with OK."""
    publish()
    async with serve() as server:
        stub = connect(server.grpc.port)
        watches = [stub.stream(WATCH, _request(name)) for name in ("", "colours", "shapes")]
        first = [await _next(watch) for watch in watches]
        server.models.drain()
        last = [await _next(watches[0]), await _next(watches[1])]
        ends = [await watch.read() for watch in watches]
        codes = [await watch.code() for watch in watches]
        after = (await stub.call(CHECK, _request("colours"))).status

    assert first == [SERVING, SERVING, SERVICE_UNKNOWN]
    assert last == [NOT_SERVING, NOT_SERVING]
    assert ends == [grpc.aio.EOF] * 3
    assert codes == [grpc.StatusCode.OK] * 3
    assert after == NOT_SERVING


async def test_a_stock_health_client_understands_it(publish: Publish, serve: Serve) -> None:
    """grpcio-health-checking's own stub, Check and Watch."""
    publish()
    async with serve() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        checked = await stub.Check(_request("colours"))
        watched = await _next(stub.Watch(_request("colours")))

    assert (checked.status, watched) == (SERVING, SERVING)


class _ManyModels:
    """Models by name, none of which is served."""

    draining = False

    def __init__(self, count: int) -> None:
        self.ready = True
        self.change = asyncio.Event()
        self._names = [f"model-{number}" for number in range(count)]

    def names(self) -> list[str]:
        """All names."""
        return self._names

    def get(self, name: str) -> None:
        """Fail."""
        raise UnknownModel(f"unknown model {name!r}")


async def test_thousands_of_models_and_of_watches_share_the_turns_of_the_event_loop() -> None:
    """A change wakes every watch: 10,000 took 0.3 s, in which no other call was answered."""
    turns = CountingTurns()
    models: Any = _ManyModels(1000)
    service = HealthService(models, (), turns)
    await service.list(health_pb2.HealthListRequest(), Call({}))
    assert turns.costs_us == [5 * 1000]

    async def requests() -> AsyncIterator[health_pb2.HealthCheckRequest]:
        yield _request("")

    watch = service.watch(requests(), Call({}))
    assert (await anext(watch)).status == SERVING
    models.ready = False
    models.change.set()
    assert (await anext(watch)).status == NOT_SERVING
    assert turns.costs_us == [5 * 1000, 20]
