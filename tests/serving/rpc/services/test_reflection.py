"""Server reflection, used by grpcio-reflection's client as grpcurl would."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.servers import Serve

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "lenserve.v1.Classifier",
]


@pytest.fixture
async def address(serve: Serve) -> AsyncIterator[str]:
    """The address of a server without models."""
    async with serve() as server:
        yield f"127.0.0.1:{server.grpc.port}"


async def test_every_service_is_listed_and_described(address: str) -> None:
    """All services are listed, and described down to the types of their methods."""

    def explore() -> tuple[list[str], dict[str, list[str]]]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            services = sorted(database.get_services())
            described = {name: pool.FindServiceByName(name).methods for name in services}
            return services, {name: [m.input_type.full_name for m in ms] for name, ms in described.items()}

    services, methods = await asyncio.to_thread(explore)

    assert services == SERVICES
    assert (
        methods["lenserve.v1.Classifier"] == ["lenserve.v1.ClassifyRequest"] * 2
    )  # Classify, ClassifyStream
    assert "inference.ModelInferRequest" in methods["inference.GRPCInferenceService"]


async def _ask(address: str, version: str, **question: str) -> reflection_pb2.ServerReflectionResponse:
    """The answer of a version; grpcurl asks v1 first, and older tools only v1alpha."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(**question)]))
        answer: reflection_pb2.ServerReflectionResponse = await call.read()
        call.cancel()
        return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("lenserve.v1.Classifier", "lenserve/v1/classifier.proto"),
        ("lenserve.v1.Classifier.Classify", "lenserve/v1/classifier.proto"),
        ("inference.GRPCInferenceService.ModelInfer", "inference/grpc_service.proto"),
        ("inference.ModelInferRequest.InferInputTensor", "inference/grpc_service.proto"),
        ("lenserve.v1.ClassifyRequest.top_k", "lenserve/v1/classifier.proto"),
        ("grpc.health.v1.Health.List", "grpc_health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection.ServerReflectionInfo", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1.ServerReflectionRequest", "grpc/reflection/v1/reflection.proto"),
        ("lenserve.v1.Classifier.Nothing", ""),
        ("Nothing", ""),
    ],
)
async def test_symbols_of_every_kind_are_found(address: str, version: str, symbol: str, file: str) -> None:
    """`grpcurl describe SERVICE.METHOD` asks for the symbol of a method."""
    answer = await _ask(address, version, file_containing_symbol=symbol)

    if not file:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        return
    first = descriptor_pb2.FileDescriptorProto.FromString(
        answer.file_descriptor_response.file_descriptor_proto[0]
    )
    assert first.name.endswith(file)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_both_versions_list_the_services(address: str, version: str) -> None:
    """The same."""
    answer = await _ask(address, version, list_services="")

    assert [each.name for each in answer.list_services_response.service] == SERVICES


async def test_an_unknown_symbol_does_not_end_the_stream(address: str) -> None:
    """It is answered with NOT_FOUND, and the next request as usual."""
    questions = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
        reflection_pb2.ServerReflectionRequest(list_services=""),
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(questions))]

    assert answers[0].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert sorted(each.name for each in answers[1].list_services_response.service) == SERVICES
