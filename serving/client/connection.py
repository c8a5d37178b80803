"""The base of both clients: a gRPC channel with retries, the methods, and the options of every call."""

import json
from pathlib import Path
from typing import Any

import grpc

from serving.client.messages import MAX_REQUEST_BYTES, RETRYABLE_CODES
from serving.errors import UsageError
from serving.pb.lenserve.v1 import classifier_pb2 as pb

_SERVICE = "lenserve.v1.Classifier"


class BaseClient:
    """A channel and its two methods. One subclass blocks on the calls, the other awaits them."""

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
    """Open a channel of `grpc` or `grpc.aio`, with TLS if a CA file is given.

    Raises:
        UsageError: a TLS file cannot be read, or the certificate, its key or the authority is missing.
    """
    options = channel_options(attempts)
    if (tls_cert_file is None) != (tls_key_file is None) or (tls_cert_file and tls_ca_file is None):
        raise UsageError("set tls_cert_file and tls_key_file together, and tls_ca_file with them")
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
    """Return gRPC options: the retry policy, and no limit on message sizes."""
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": RETRYABLE_CODES,
    }
    method = {"name": [{"service": _SERVICE}]} | ({"retryPolicy": policy} if attempts > 1 else {})
    return [
        ("grpc.service_config", json.dumps({"methodConfig": [method]})),
        # By default the channel waits a second before it reconnects, longer than most retries take.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Requests larger than this buffer are not retried; the default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 2 * MAX_REQUEST_BYTES),
    ]
