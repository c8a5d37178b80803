"""grpc.reflection.v1alpha: lets grpcurl list the services. grpcio-reflection implements it."""

from collections.abc import Sequence

from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.rpc.routes import Rpc, Stream

SERVICE = reflection.SERVICE_NAME


def reflection_rpcs(services: Sequence[str]) -> Sequence[Rpc]:
    """The RPC that lists services and describes their messages."""
    servicer = reflection.aio.ReflectionServicer([*services, SERVICE])
    method = f"/{SERVICE}/ServerReflectionInfo"
    return (Stream(method, reflection_pb2.ServerReflectionRequest, servicer.ServerReflectionInfo),)
