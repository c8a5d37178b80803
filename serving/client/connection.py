"""The base of both clients: a gRPC channel, the methods, and the options of every call."""

from pathlib import Path
from typing import Any

import grpc

from serving.client.address import is_loopback, server_address
from serving.client.messages import CallFailed, not_utf8, split_model
from serving.client.retries import OnRetry, Retries
from serving.errors import ModelUnavailable, UnknownModel, UsageError
from serving.limited_files import read_once, why_unreadable
from serving.pb.inference import grpc_service_pb2 as inference_pb
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.text_files import without_mark

_SERVICE = "lenserve.v1.Classifier"
_INFERENCE = "inference.GRPCInferenceService"
_CAUSES_OF_NOT_READY = (UnknownModel("").reason, ModelUnavailable("").reason)


class BaseClient:
    """A channel and its methods. One subclass blocks on the calls, the other awaits them."""

    def __init__(
        self,
        channel: Any,  # noqa: ANN401 - untyped library
        *,
        token: str | None,
        timeout_s: float,
        attempts: int | None,
        on_retry: OnRetry | None,
    ) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._on_retry = on_retry
        self._metadata = (("authorization", f"Bearer {sendable_token(token)}"),) if token else ()
        self._classify = channel.unary_unary(
            f"/{_SERVICE}/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        self._classify_stream = channel.stream_stream(
            f"/{_SERVICE}/ClassifyStream",
            pb.ClassifyRequest.SerializeToString,
            pb.ClassifyStreamResponse.FromString,
        )
        self._server_ready = channel.unary_unary(
            f"/{_INFERENCE}/ServerReady",
            inference_pb.ServerReadyRequest.SerializeToString,
            inference_pb.ServerReadyResponse.FromString,
        )
        self._model_ready = channel.unary_unary(
            f"/{_INFERENCE}/ModelReady",
            inference_pb.ModelReadyRequest.SerializeToString,
            inference_pb.ModelReadyResponse.FromString,
        )
        self._model_metadata = channel.unary_unary(
            f"/{_INFERENCE}/ModelMetadata",
            inference_pb.ModelMetadataRequest.SerializeToString,
            inference_pb.ModelMetadataResponse.FromString,
        )

    def _retries(self, timeout_s: float | None) -> Retries:
        return Retries(
            self._timeout_s if timeout_s is None else timeout_s, self._attempts, on_retry=self._on_retry
        )

    def _stream_retries(self, timeout_s: float | None) -> Retries:
        """Return the attempts of a stream. Without a deadline, an outage may be as long as a call."""
        if timeout_s is not None:
            return self._retries(timeout_s)
        return Retries(self._timeout_s, self._attempts, outage=True, on_retry=self._on_retry)

    def _readiness(self, model: str) -> tuple[Any, Any]:
        """Return the method and the request that ask whether a model is ready; empty: the server.

        Raises:
            InvalidRequest: the model is not text in UTF-8, or ends with @.
        """
        if not model:
            return self._server_ready, inference_pb.ServerReadyRequest()
        name, revision = split_model(model)
        try:
            return self._model_ready, inference_pb.ModelReadyRequest(name=name, version=revision)
        except UnicodeEncodeError as error:
            raise not_utf8(model) from error


def metadata_request(ready: inference_pb.ModelReadyRequest) -> inference_pb.ModelMetadataRequest:
    """Return the request for the metadata of a model that is not ready: its refusal says why."""
    return inference_pb.ModelMetadataRequest(name=ready.name, version=ready.version)


def reason_of(refusal: CallFailed) -> str:
    """Return why a model is not ready, if the refusal says so: that of a proxy, or of Triton, does not."""
    return refusal.message if refusal.cause in _CAUSES_OF_NOT_READY else ""


def not_ready(model: str, reason: str = "") -> CallFailed:
    """Return the failure of an attempt that found the server or the model not ready."""
    what = f"model {model!r} is not ready" if model else "the server is not ready"
    return CallFailed("UNAVAILABLE", f"{what}: {reason}" if reason else what)


def open_channel(
    library: Any,  # noqa: ANN401 - untyped library
    server: str,
    *,
    tls_ca_file: Path | str | None,
    tls_cert_file: Path | str | None,
    tls_key_file: Path | str | None,
    tls_server_name: str | None,
) -> Any:  # noqa: ANN401
    """Open a channel of `grpc` or `grpc.aio`, with TLS if a CA file is given.

    Raises:
        UsageError: the address is invalid, a TLS file cannot be read, or the certificate, its key or the
            authority is missing.
    """
    address = server_address(server)
    options = channel_options(address)
    if (tls_cert_file is None) != (tls_key_file is None) or (tls_cert_file and tls_ca_file is None):
        raise UsageError("set tls_cert_file and tls_key_file together, and tls_ca_file with them")
    if tls_server_name and tls_ca_file is None:
        raise UsageError(f"tls_server_name {tls_server_name!r} needs TLS: set tls_ca_file with it")
    if tls_ca_file is None:
        return library.insecure_channel(address, options=options)
    if tls_server_name:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    authority, key, chain = map(_read_pem, (tls_ca_file, tls_key_file, tls_cert_file))
    return library.secure_channel(
        address, grpc.ssl_channel_credentials(authority, key, chain), options=options
    )


def _read_pem(file: Path | str | None) -> bytes | None:
    try:
        return None if file is None else without_mark(read_once(Path(file)))
    except OSError as error:
        raise UsageError(f"TLS file {file} cannot be read: {why_unreadable(error)}") from error


def sendable_token(token: str) -> str:
    """Return the token, if a header can carry it.

    Raises:
        UsageError: it cannot.
    """
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            "the token has characters that no header can carry: use printable ASCII, without line ends"
        )
    return token


def channel_options(address: str) -> list[tuple[str, Any]]:
    """Return gRPC options: no limit on message sizes, and no proxy where none can help.

    Args:
        address: as `server_address` returns it.
    """
    return [
        # By default a channel waits a second before it reconnects, longer than most retries.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # http_proxy of the environment is for other machines, even without a no_proxy.
        *([("grpc.enable_http_proxy", 0)] if is_loopback(address) else []),
    ]
