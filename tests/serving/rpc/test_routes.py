"""The table of RPCs: complete, and without types of a transport."""

from google.protobuf import descriptor_pool

from serving.rpc.routes import Pipeline, Unary, services
from serving.server import build_table
from tests.colours import Publish
from tests.servers import Serve

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "lenserve.v1.Classifier",
]


async def test_the_table_has_every_method_of_every_service(publish: Publish, serve: Serve) -> None:
    """Every method of the .proto files has an RPC with its message type and kind of streaming."""
    publish()
    async with serve() as server:
        table = build_table(server.classifier, server.models, server.metrics)
    pool = descriptor_pool.Default()
    promised = {
        f"/{service}/{method.name}": (method.input_type.full_name, method.server_streaming)
        for service in SERVICES
        for method in pool.FindServiceByName(service).methods
    }

    answered = {rpc.method: (rpc.request.DESCRIPTOR.full_name, not isinstance(rpc, Unary)) for rpc in table}

    # The messages of both versions of reflection are the same, but for their names.
    method = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
    promised[method.format("v1")] = promised[method.format("v1alpha")]
    assert answered == promised


async def test_rpcs_name_the_model_that_tokens_are_checked_for(publish: Publish, serve: Serve) -> None:
    """Every unary RPC is a probe, or has no field for a model, or says which field it is."""
    publish()
    async with serve() as server:
        table = build_table(server.classifier, server.models, server.metrics)

    for rpc in table:
        if "SharedMemory" in rpc.method:  # `name` is a region
            continue
        fields = set(rpc.request.DESCRIPTOR.fields_by_name) & {"model", "model_name", "name"}
        if isinstance(rpc, Pipeline) or (isinstance(rpc, Unary) and not rpc.is_probe):
            assert {rpc.model_field} - {""} == fields, rpc.method


def test_services_are_named_once_and_sorted() -> None:
    """Two methods of one service give one name."""
    rows = [Unary(method, type, _never) for method in ("/b.B/One", "/a.A/One", "/b.B/Two")]  # type: ignore[arg-type]

    assert services(rows) == ["a.A", "b.B"]


async def _never(request: object, call: object) -> object:
    raise AssertionError((request, call))
