"""Tokens: which calls are allowed, and errors of token files."""

from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from serving.errors import PermissionDenied, Unauthenticated, UsageError
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens, check_model
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.stub import Connect

TOKENS = Tokens({"everything": ["*"], "colours-only": ["colours", "shades"], "nothing": []})


@pytest.mark.parametrize(
    ("authorization", "model"),
    [
        ("Bearer everything", "colours"),
        ("bearer everything", ""),
        ("BEARER   colours-only ", "shades"),
        ("Bearer colours-only", ""),
        ("Bearer nothing", ""),
    ],
)
def test_a_good_token_passes(authorization: str, model: str) -> None:
    """Case of the scheme and spaces do not matter; calls without a model need any known token."""
    check_model(TOKENS.models(authorization), model)


@pytest.mark.parametrize(
    "authorization", ["", "everything", "Basic everything", "Bearer ", "Bearer every", "Bearer \x00é"]
)
def test_a_missing_or_wrong_token_is_unauthenticated(authorization: str) -> None:
    """No header, another scheme, no token, an unknown token."""
    with pytest.raises(Unauthenticated):
        TOKENS.models(authorization)


@pytest.mark.parametrize("token", ["colours-only", "nothing"])
def test_a_token_for_other_models_is_denied_by_name(token: str) -> None:
    """The message names the model and does not repeat the token."""
    with pytest.raises(PermissionDenied, match=r"^the bearer token does not allow model 'shapes'$"):
        check_model(TOKENS.models(f"Bearer {token}"), "shapes")


def test_a_token_file_is_read(tmp_path: Path) -> None:
    """[tokens] maps tokens to lists of models."""
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"abc" = ["colours"]\n')

    tokens = Tokens.read(file)

    models = tokens.models("Bearer abc")
    check_model(models, "colours")
    with pytest.raises(PermissionDenied):
        check_model(models, "shapes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"tokens = 3", "has the wrong form: use .tokens."),
        (b"[tokens]\nabc = 'colours'", "has the wrong form: use .tokens."),
        (b"[tokens]\n[others]\n", "has the wrong form: use .tokens."),
        (b"[tokens", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"tokens = " + b"[" * 5000, "is nested too deeply"),
    ],
)
def test_a_wrong_token_file_is_a_usage_error(tmp_path: Path, text: bytes, message: str) -> None:
    """The message says what is wrong without repeating a possible secret."""
    file = tmp_path / "tokens.toml"
    file.write_bytes(text)

    with pytest.raises(UsageError, match=message):
        Tokens.read(file)


def test_a_missing_token_file_is_a_usage_error(tmp_path: Path) -> None:
    """A server with a token file in its settings never starts without it."""
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        Tokens.read(tmp_path / "none.toml")


async def test_only_probes_need_no_token(
    publish: Publish, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Without a token a probe learns that the server lives, but not what it serves."""
    publish()
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"abc" = ["colours"]\n')
    service = "inference.GRPCInferenceService"
    async with serve(token_file=file) as server:
        stub = connect(server.grpc.port)
        live = await stub.call(f"{service}/ServerLive", oip.ServerLiveRequest())
        ready = await stub.call(f"{service}/ServerReady", oip.ServerReadyRequest())
        health = await stub.call("grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
        closed = [
            (await stub.refusal(method, request)).code
            for method, request in (
                ("lenserve.v1.Classifier/Classify", pb.ClassifyRequest(model="colours")),
                (f"{service}/ServerMetadata", oip.ServerMetadataRequest()),
                (f"{service}/ModelReady", oip.ModelReadyRequest(name="colours")),
                (f"{service}/ModelMetadata", oip.ModelMetadataRequest(name="colours")),
                (f"{service}/ModelConfig", oip.ModelConfigRequest(name="colours")),
                (f"{service}/ModelInfer", oip.ModelInferRequest(model_name="colours")),
            )
        ]
        metadata = (("authorization", "Bearer abc"),)
        named = await stub.call(
            f"{service}/ModelReady", oip.ModelReadyRequest(name="colours"), metadata=metadata
        )
        foreign = await stub.refusal(
            f"{service}/ModelConfig", oip.ModelConfigRequest(name="shapes"), metadata=metadata
        )

    assert (live.live, ready.ready, health.status) == (True, True, health_pb2.HealthCheckResponse.SERVING)
    assert closed == ["UNAUTHENTICATED"] * 6
    assert named.ready
    assert (foreign.code, foreign.message) == (
        "PERMISSION_DENIED",
        "the bearer token does not allow model 'shapes'",
    )
