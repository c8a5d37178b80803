"""A token for one model neither lists nor changes anything of others."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from serving.bundle import Repository
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import hash_token
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.stub import Connect, Refusal

SERVICE = "inference.GRPCInferenceService"
FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open keeps its objects on Linux
KEY = f"lenserve-test-{os.getpid()}-isolation"
IMAGE = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=bytes(192)))


class Client:
    """Calls with one token."""

    def __init__(self, connect: Connect, port: int, token: str | None) -> None:
        self._stub = connect(port)
        self._options: dict[str, Any] = (
            {} if token is None else {"metadata": (("authorization", f"Bearer {token}"),)}
        )

    async def call(self, method: str, request: Message) -> Any:  # noqa: ANN401 - any message
        """Return the answer."""
        return await self._stub.call(method, request, **self._options)

    async def refusal(self, method: str, request: Message) -> Refusal:
        """Return the failure."""
        return await self._stub.refusal(method, request, **self._options)


@pytest.fixture
async def client(
    publish: Publish, serve: Serve, connect: Connect, tmp_path: Path
) -> AsyncIterator[Callable[[str | None], Client]]:
    """Clients by token: `one` is for colours, `other` for shades, `all` for every model; None has none."""
    publish("colours")
    publish("shades")
    file = tmp_path / "tokens.toml"
    allowed = {"one": ["colours"], "other": ["shades"], "all": ["*"], "no-such-model": ["none"]}
    file.write_text("[tokens]\n" + "".join(f'"{hash_token(t)}" = {m}\n' for t, m in allowed.items()))
    options = {"model_control": True, "shared_memory_pattern": "lenserve-test-.*"}
    async with serve(token_file=file, **options) as server:
        yield lambda token: Client(connect, server.grpc.port, token)


@pytest.mark.parametrize(
    ("token", "seen"),
    [("one", {"colours"}), ("other", {"shades"}), ("all", {"colours", "shades"}), ("no-such-model", set())],
)
async def test_lists_hold_the_models_of_the_token(
    client: Callable[[str | None], Client], token: str, seen: set[str]
) -> None:
    """Statistics, the index of the repository, and the names that an error suggests."""
    caller = client(token)
    statistics = await caller.call(f"{SERVICE}/ModelStatistics", oip.ModelStatisticsRequest())
    index = await caller.call(f"{SERVICE}/RepositoryIndex", oip.RepositoryIndexRequest())
    unknown = await caller.refusal("lenserve.v1.Classifier/Classify", pb.ClassifyRequest(images=[IMAGE]))

    assert {each.name for each in statistics.model_stats} == seen
    assert {each.name for each in index.models} == seen
    assert unknown.message == f"there is no model ''; known models: {', '.join(sorted(seen)) or 'none'}"


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("ModelReady", lambda name: oip.ModelReadyRequest(name=name)),
        ("ModelMetadata", lambda name: oip.ModelMetadataRequest(name=name)),
        ("ModelConfig", lambda name: oip.ModelConfigRequest(name=name)),
        ("ModelStatistics", lambda name: oip.ModelStatisticsRequest(name=name)),
        ("ModelInfer", lambda name: oip.ModelInferRequest(model_name=name)),
        ("RepositoryModelLoad", lambda name: oip.RepositoryModelLoadRequest(model_name=name)),
        ("RepositoryModelUnload", lambda name: oip.RepositoryModelUnloadRequest(model_name=name)),
    ],
)
async def test_other_models_are_denied_alike_whether_they_exist_or_not(
    client: Callable[[str | None], Client], method: str, request_of: Callable[[str], Message]
) -> None:
    """The message tells nothing but the name in the request."""
    for name in ("shades", "none"):
        refusal = await client("one").refusal(f"{SERVICE}/{method}", request_of(name))
        expected = ("PERMISSION_DENIED", f"the bearer token does not allow model {name!r}")
        assert (refusal.code, refusal.message) == expected


async def test_the_health_of_a_model_needs_its_token(client: Callable[[str | None], Client]) -> None:
    """Probes of the server need none."""
    check = "grpc.health.v1.Health/Check"
    for service in ("", "lenserve.v1.Classifier", "inference.GRPCInferenceService"):
        answer = await client(None).call(check, health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    colours = health_pb2.HealthCheckRequest(service="colours")
    codes = {token: (await client(token).refusal(check, colours)).code for token in (None, "wrong", "other")}
    allowed = await client("one").call(check, colours)

    assert codes == {None: "UNAUTHENTICATED", "wrong": "UNAUTHENTICATED", "other": "PERMISSION_DENIED"}
    assert allowed.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def shared() -> Iterator[str]:
    """The key of 64 bytes of shared memory."""
    (FOLDER / KEY).write_bytes(bytes(64))
    yield f"/{KEY}"
    (FOLDER / KEY).unlink()


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs shared memory in /dev/shm")
async def test_regions_of_shared_memory_belong_to_their_token(
    client: Callable[[str | None], Client], shared: str
) -> None:
    """Others do not see, use, replace or unregister them, and cannot register the same memory."""
    status, register, unregister = (
        f"{SERVICE}/SystemSharedMemory{each}" for each in ("Status", "Register", "Unregister")
    )
    region = oip.SystemSharedMemoryRegisterRequest(name="r", key=shared, byte_size=64)
    await client("one").call(register, region)

    for token in ("other", "all"):
        listed = await client(token).call(status, oip.SystemSharedMemoryStatusRequest())
        named = await client(token).refusal(status, oip.SystemSharedMemoryStatusRequest(name="r"))
        again = await client(token).refusal(register, region)
        for name in ("", "r"):
            await client(token).call(unregister, oip.SystemSharedMemoryUnregisterRequest(name=name))
        assert not listed.regions
        assert named.code == "NOT_FOUND"
        assert again.message == f"shared memory key {shared!r} is in use by another token: choose another key"
    infer = oip.ModelInferRequest(model_name="shades")
    tensor = infer.inputs.add(name="image", datatype="UINT8", shape=[1, 8, 8, 3])
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 192
    used = await client("other").refusal(f"{SERVICE}/ModelInfer", infer)
    mine = await client("one").call(status, oip.SystemSharedMemoryStatusRequest())

    assert (used.code, used.message) == ("NOT_FOUND", "shared memory region 'r' is not registered")
    assert list(mine.regions) == ["r"]
    await client("one").call(unregister, oip.SystemSharedMemoryUnregisterRequest())
    await client("other").call(register, region)


async def test_without_tokens_everybody_sees_everything(
    publish: Publish, serve: Serve, connect: Connect, repository: Repository
) -> None:
    """As before."""
    publish("colours")
    publish("shades")
    assert repository.models()
    async with serve() as server:
        caller = Client(connect, server.grpc.port, None)
        index = await caller.call(f"{SERVICE}/RepositoryIndex", oip.RepositoryIndexRequest())
        health = await caller.call(
            "grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="shades")
        )
    assert {each.name for each in index.models} == {"colours", "shades"}
    assert health.status == health_pb2.HealthCheckResponse.SERVING
