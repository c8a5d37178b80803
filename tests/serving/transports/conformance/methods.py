"""Clients of the test methods, and failures of their calls."""

from typing import Any, Protocol

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue

from tests.serving.transports.conformance.echo import SERVICE
from tests.serving.transports.conformance.served import Served


class Methods:
    """The test methods over a real channel: `methods.unary("Say")(message)`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def unary(self, name: str, answer: type[Message] = BytesValue) -> Any:  # noqa: ANN401 - grpc is untyped
        """One message in, one out."""
        return self.channel.unary_unary(f"/{SERVICE}/{name}", _serialize, answer.FromString)

    def stream(self, name: str, answer: type[Message] = BytesValue) -> Any:  # noqa: ANN401 - grpc is untyped
        """Messages in, messages out."""
        return self.channel.stream_stream(f"/{SERVICE}/{name}", _serialize, answer.FromString)

    def client_stream(self, name: str, answer: type[Message] = BytesValue) -> Any:  # noqa: ANN401 - grpc is untyped
        """Messages in, one out."""
        return self.channel.stream_unary(f"/{SERVICE}/{name}", _serialize, answer.FromString)

    def server_stream(self, name: str, answer: type[Message] = BytesValue) -> Any:  # noqa: ANN401 - grpc is untyped
        """One message in, messages out."""
        return self.channel.unary_stream(f"/{SERVICE}/{name}", _serialize, answer.FromString)


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


class Channels(Protocol):
    """Opens channels of grpc.aio: `channels(served, *options)`."""

    def __call__(self, served: Served | str, *options: tuple[str, Any], **keywords: Any) -> Methods:
        """Keywords are those of `grpc.aio.insecure_channel`."""


async def failure_of(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    """Await a call, or read a stream to its end, and return its error."""

    async def end() -> None:
        if not hasattr(call, "__aiter__"):
            await call
            return
        async for _ in call:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await end()
    return caught.value
