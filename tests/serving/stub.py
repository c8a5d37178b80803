"""A client that calls any RPC by its full name, and decodes failures."""

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Refusal:
    """The failure of a call, as seen by the caller."""

    code: str
    message: str
    reason: str  # of the ErrorInfo in grpc-status-details-bin
    request_id: str  # of the same
    trailers: dict[str, str | bytes]


class Stub:
    """Calls any method by its full name over a real channel; messages are found by their descriptors."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, request: Message, **options: Any) -> Any:  # noqa: ANN401 - grpc is untyped
        """Return the answer of a unary method, such as `lenserve.v1.Classifier/Classify`."""
        return await self.start(method, request, **options)

    def start(self, method: str, request: Message | bytes, **options: Any) -> Any:  # noqa: ANN401 - grpc is untyped
        """Start a call. A request of bytes is sent unchanged."""
        multicallable = self._channel.unary_unary(f"/{method}", _serialize, _response(method).FromString)
        return multicallable(request, **options)

    def stream(self, method: str, request: Message, **options: Any) -> Any:  # noqa: ANN401 - grpc is untyped
        """Return the answers to one message."""
        multicallable = self._channel.unary_stream(f"/{method}", _serialize, _response(method).FromString)
        return multicallable(request, **options)

    def talk(
        self, method: str, requests: AsyncIterable[Message | bytes] | None = None, **options: Any
    ) -> Any:  # noqa: ANN401 - grpc is untyped
        """Start a bidirectional stream, of these requests or of messages that are written to it."""
        multicallable = self._channel.stream_stream(f"/{method}", _serialize, _response(method).FromString)
        return multicallable(requests, **options)

    async def refusal(self, method: str, request: Message | bytes, **options: Any) -> Refusal:
        """Return the failure of a call that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.start(method, request, **options)
        return refusal_of(caught.value)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Decode the failure of a call."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    if status is not None:
        assert status.code == error.code().value[0]
        assert status.message == error.details()
        assert status.details[0].Unpack(info)
        assert info.domain == "lenserve"
    trailers = dict(error.trailing_metadata() or ())
    return Refusal(error.code().name, error.details(), info.reason, info.metadata["request_id"], trailers)


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def _response(method: str) -> type[Message]:
    service, name = method.split("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return message_factory.GetMessageClass(descriptor.output_type)


class Connect(Protocol):
    """Connects to the port of a server: `connect(server.grpc.port)`."""

    def __call__(self, port: int, **options: Any) -> Stub:
        """Further options are those of `grpc.aio.insecure_channel`."""
