"""What both clients are made of: a channel that tries again, its methods, and what goes with every call."""

import json
from pathlib import Path
from typing import Any

import grpc

from serving.client.messages import MAX_REQUEST_BYTES, PASSING
from serving.errors import UsageError
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


def open_channel(
    library: Any,  # noqa: ANN401 - untyped library
    server: str,
    *,
    attempts: int,
    tls_ca_file: Path | str | None,
    tls_cert_file: Path | str | None,
    tls_key_file: Path | str | None,
) -> Any:  # noqa: ANN401
    """A channel of `grpc` or of `grpc.aio`: with TLS where an authority is given to trust.

    Raises:
        UsageError: the files of TLS cannot be read, or do not belong together.
    """
    options = channel_options(attempts)
    if (tls_cert_file is None) != (tls_key_file is None) or (tls_cert_file and tls_ca_file is None):
        raise UsageError("tls_cert_file and tls_key_file belong together, and need tls_ca_file")
    if tls_ca_file is None:
        return library.insecure_channel(server, options=options)
    authority, key, chain = map(_read_pem, (tls_ca_file, tls_key_file, tls_cert_file))
    return library.secure_channel(
        server, grpc.ssl_channel_credentials(authority, key, chain), options=options
    )


def _read_pem(file: Path | str | None) -> bytes | None:
    try:
        return None if file is None else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"TLS file {file} cannot be read: {error.strerror}") from error


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
