"""grpc.reflection, v1 and v1alpha: lets grpcurl list and describe services. grpcio-reflection implements it.

The library has v1alpha only. v1 has the same messages under another name, and most tools ask for it first.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.rpc.routes import Call, Rpc, Stream
from serving.turns import Turns

V1ALPHA = reflection.SERVICE_NAME
V1 = "grpc.reflection.v1.ServerReflection"

_V1_FILE = "grpc/reflection/v1/reflection.proto"

_ANSWER_US = 60  # to serialize a file and those that it imports, and to send 9 KB, about


def reflection_rpcs(services: Sequence[str], turns: Turns) -> Sequence[Rpc]:
    """The RPCs that list services and describe their messages, some in each turn."""
    _add_v1(descriptor_pool.Default())
    reflector = _Reflection([*services, V1, V1ALPHA])

    async def in_turns(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            await turns.take(_ANSWER_US)
            yield request

    def answer(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        return reflector.ServerReflectionInfo(in_turns(requests), call)  # type: ignore[no-any-return] # untyped

    request = reflection_pb2.ServerReflectionRequest
    return tuple(Stream(f"/{each}/ServerReflectionInfo", request, answer) for each in (V1, V1ALPHA))


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc] # untyped library
    """Finds methods and fields too: python's pool knows messages, enums and services only."""

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:  # noqa: ANN401
        parent, _, member = fully_qualified_name.rpartition(".")
        is_member = _has_member(descriptor_pool.Default(), parent, member)
        return super()._file_containing_symbol(request, parent if is_member else fully_qualified_name)


def _has_member(pool: descriptor_pool.DescriptorPool, parent: str, member: str) -> bool:
    """Whether `parent` is a service with this method, or a message with this field."""
    for find, members in (
        (pool.FindServiceByName, "methods_by_name"),
        (pool.FindMessageTypeByName, "fields_by_name"),
        (pool.FindMessageTypeByName, "oneofs_by_name"),
    ):
        try:
            if member in getattr(find(parent), members):
                return True
        except KeyError:
            continue
    return False


def _add_v1(pool: descriptor_pool.DescriptorPool) -> None:
    """Let the pool describe v1, unless a later version of the library does."""
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        v1alpha = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
        package = V1.rpartition(".")[0]
        v1 = _with_types_renamed(v1alpha, f".{v1alpha.package}.", f".{package}.")
        v1.name, v1.package = _V1_FILE, package
        pool.AddSerializedFile(v1.SerializeToString())


def _with_types_renamed(
    file: descriptor_pb2.FileDescriptorProto, old: str, new: str
) -> descriptor_pb2.FileDescriptorProto:
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return file
