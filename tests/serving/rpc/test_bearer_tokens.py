"""Tokens: which calls are allowed, and errors of token files."""

import hashlib
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from serving.errors import PermissionDenied, Unauthenticated, UsageError
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens, hash_token
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.log_events import LogEvents
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
    TOKENS.grant(authorization).check(model)


@pytest.mark.parametrize(
    "authorization", ["", "everything", "Basic everything", "Bearer ", "Bearer every", "Bearer \x00é"]
)
def test_a_missing_or_wrong_token_is_unauthenticated(authorization: str) -> None:
    """No header, another scheme, no token, an unknown token."""
    with pytest.raises(Unauthenticated):
        TOKENS.grant(authorization)


@pytest.mark.parametrize("token", ["colours-only", "nothing"])
def test_a_token_for_other_models_is_denied_by_name(token: str) -> None:
    """The message names the model and does not repeat the token."""
    with pytest.raises(PermissionDenied, match=r"^the bearer token does not allow model 'shapes'$"):
        TOKENS.grant(f"Bearer {token}").check("shapes")


def test_a_token_file_holds_hashes(tmp_path: Path, log_events: LogEvents) -> None:
    """Also with a byte order mark, and in capitals. The hash itself is no token."""
    file = tmp_path / "tokens.toml"
    hashed = hash_token("abc")
    assert hashed == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    file.write_text(f'[tokens]\n"sha256:{hashed[7:].upper()}" = ["colours"]\n', encoding="utf-8-sig")

    tokens = Tokens.read(file)

    tokens.grant("Bearer abc").check("colours")
    for wrong in (hashed, hashed[7:], "ab"):
        with pytest.raises(Unauthenticated):
            tokens.grant(f"Bearer {wrong}")
    assert not log_events.records


def test_plain_tokens_are_read_and_logged(tmp_path: Path, log_events: LogEvents) -> None:
    """The log says how many, and not which."""
    file = tmp_path / "tokens.toml"
    file.write_text(f'[tokens]\n"abc" = ["*"]\n"{hash_token("def")}" = ["*"]\n')

    Tokens.read(file).grant("Bearer abc")

    (event,) = log_events.records
    assert event.getMessage() == "plain_tokens"
    assert event.reason == "1 of 2 tokens are not hashed: see `lenserve tokens hash`"


def test_a_damaged_hash_is_a_usage_error(tmp_path: Path) -> None:
    """It would be a token that no client has, or worse, one that can be read in the file."""
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"sha256:12ab" = ["*"]\n')
    with pytest.raises(UsageError, match=r"has 4 characters, expected 64 hexadecimal digits: make it with"):
        Tokens.read(file)


def test_grants_follow_the_file() -> None:
    """Those of running calls too, through several changes; a token that comes back needs a new call."""
    tokens = Tokens({"abc": ["colours"], "xyz": ["*"]})
    grant, other = tokens.grant("Bearer abc"), tokens.grant("Bearer xyz")

    tokens.replace(Tokens({"abc": ["shapes"], "xyz": ["*"], "new": ["*"]}))
    grant.check("shapes")
    with pytest.raises(PermissionDenied):
        grant.check("colours")

    tokens.replace(Tokens({"xyz": ["*"]}))
    tokens.replace(Tokens({"xyz": ["*"], "abc": ["*"]}))
    with pytest.raises(
        Unauthenticated, match="the bearer token is no longer valid: reconnect with another one"
    ):
        grant.check("shapes")
    tokens.grant("Bearer abc").check("shapes")
    other.check("anything")
    assert tokens.grant("Bearer xyz") is other


def test_a_token_file_is_read(tmp_path: Path) -> None:
    """[tokens] maps tokens to lists of models."""
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"abc" = ["colours"]\n')

    tokens = Tokens.read(file)

    grant = tokens.grant("Bearer abc")
    grant.check("colours")
    with pytest.raises(PermissionDenied):
        grant.check("shapes")


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
