"""What both clients are made of: a channel that tries again, its methods, and what goes with every call."""

import json
from typing import Any

from serving.client_messages import MAX_REQUEST_BYTES, PASSING
from serving.pb.lenserve.v1 import classifier_pb2 as pb

_SERVICE = "lenserve.v1.Classifier"


class Connection:
    """A channel and its two methods. Both clients add how they wait."""

    def __init__(self, channel: Any, *, token: str | None, timeout_s: float) -> None:  # noqa: ANN401 - untyped library
        self._channel = channel
        self._timeout_s = timeout_s
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._classify = channel.unary_unary(
            f"/{_SERVICE}/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        self._classify_stream = channel.stream_stream(
            f"/{_SERVICE}/ClassifyStream",
            pb.ClassifyRequest.SerializeToString,
            pb.ClassifyStreamResponse.FromString,
        )

    def _options(self, timeout_s: float | None) -> dict[str, Any]:
        return {"timeout": self._timeout_s if timeout_s is None else timeout_s, "metadata": self._metadata}


def channel_options(attempts: int) -> list[tuple[str, Any]]:
    """Options of gRPC: what to send again and when, and no limit on messages."""
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": PASSING,
    }
    method = {"name": [{"service": _SERVICE}]} | ({"retryPolicy": policy} if attempts > 1 else {})
    return [
        ("grpc.service_config", json.dumps({"methodConfig": [method]})),
        # Else the connection itself rests for a second after a refusal, longer than most of the attempts do.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # What is larger than this buffer is not sent again, and gRPC's default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 2 * MAX_REQUEST_BYTES),
    ]
