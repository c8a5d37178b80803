"""The server's options: defaults, bounds, and combinations."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving import settings as settings_module
from serving.bundle.images import PILLOW_MAX_PIXELS
from serving.bundle.urls import DEFAULT_REPOSITORY
from serving.settings import ServerSettings

HERE = Path()


def test_no_setting_is_required() -> None:
    """The defaults are those of other servers: ports 8001 and 8002 on the loopback address, device auto."""
    settings = ServerSettings()
    assert settings.repository == DEFAULT_REPOSITORY
    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 8001, 8002)
    assert settings.device == "auto"
    assert settings.token_file is None


def test_settings_cannot_be_changed() -> None:
    """They are created once and passed down."""
    settings = ServerSettings(repository=HERE)
    with pytest.raises(ValidationError, match="frozen"):
        settings.grpc_port = 1  # type: ignore[misc]


def test_an_unknown_key_is_refused_by_name() -> None:
    """A misspelt option is an error."""
    with pytest.raises(ValidationError, match=r"max_batch_sise\n.*not permitted"):
        ServerSettings.model_validate({"repository": HERE, "max_batch_sise": 8})


BAD = [
    ("grpc_port", -1),
    ("grpc_port", 65536),
    ("http_port", 65536),
    ("transport", "http"),
    ("device", "gpu"),
    ("device", "cuda:"),
    ("device", "cuda:x"),
    ("device", "CPU"),
    ("device", "cpu\n"),
    ("engine_threads", -1),
    ("engine_threads", 257),
    ("workers", -1),
    ("workers", 257),
    ("max_batch_size", 0),
    ("max_batch_size", 1025),
    ("max_queue_delay_s", -0.001),
    ("max_queue_delay_s", 1.001),
    ("max_queue_delay_s", float("nan")),
    ("max_images", 0),
    ("max_images", 4097),
    ("max_image_bytes", 0),
    ("max_image_pixels", 0),
    ("max_image_pixels", PILLOW_MAX_PIXELS + 1),
    ("max_message_bytes", 1023),
    ("max_message_bytes", 2**31),
    ("max_pending_images", 0),
    ("default_top_k", 0),
    ("decode_threads", -1),
    ("decode_threads", 257),
    ("poll_interval_s", 0),
    ("poll_interval_s", 3601),
    ("poll_interval_s", float("inf")),
    ("lame_duck_s", -1),
    ("lame_duck_s", 601),
    ("drain_timeout_s", -1),
    ("drain_timeout_s", 3601),
]

GOOD = [
    ("grpc_port", 0),
    ("http_port", 65535),
    ("device", "cuda"),
    ("device", "cuda:12"),
    ("engine_threads", 0),
    ("max_batch_size", 1),
    ("max_batch_size", 1024),
    ("max_queue_delay_s", 1.0),
    ("max_image_pixels", PILLOW_MAX_PIXELS),
    ("max_message_bytes", 1024),
    ("poll_interval_s", 0.001),
    ("lame_duck_s", 0.0),
    ("drain_timeout_s", 0.0),
]


@pytest.mark.parametrize(("option", "value"), BAD)
def test_a_value_outside_its_bounds_is_refused_by_name(option: str, value: object) -> None:
    """A value that cannot work is refused before anything starts."""
    with pytest.raises(ValidationError, match=option):
        ServerSettings.model_validate({"repository": HERE, option: value})


@pytest.mark.parametrize(("option", "value"), GOOD)
def test_a_value_on_its_bound_is_accepted(option: str, value: object) -> None:
    """Bounds are inclusive."""
    assert getattr(ServerSettings.model_validate({"repository": HERE, option: value}), option) == value


@pytest.mark.parametrize("option", [{"model_control": True}, {"shared_memory_pattern": "/demo"}])
@pytest.mark.parametrize("workers", [0, 2])
def test_features_that_reach_only_one_worker_are_refused_with_several(
    option: dict[str, object], workers: int
) -> None:
    """A load or a registration would reach only one worker."""
    with pytest.raises(ValidationError, match=f"need --workers 1, got {workers}"):
        ServerSettings.model_validate({"repository": HERE, "workers": workers, **option})


def test_a_request_that_could_never_be_admitted_is_refused_with_both_numbers() -> None:
    """A request with more images than may ever be pending would be retried forever."""
    with pytest.raises(ValidationError, match="--max-images 11 exceeds --max-pending-images 10"):
        ServerSettings(repository=HERE, max_images=11, max_pending_images=10)
    assert ServerSettings(repository=HERE, max_images=10, max_pending_images=10).max_images == 10


def test_every_option_has_a_description() -> None:
    """Descriptions are the text of --help."""
    for name, field in ServerSettings.model_fields.items():
        assert field.description, name


def test_zero_decode_threads_means_one_for_each_core() -> None:
    """0 means one thread per core."""
    assert ServerSettings(repository=HERE, decode_threads=0).decoders >= 1
    assert ServerSettings(repository=HERE, decode_threads=3).decoders == 3


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """If 0 means one per core, the sum over all workers is the number of cores, and each has at least one."""
    monkeypatch.setattr(settings_module, "available_cores", lambda: 8)

    def of_worker(**options: int) -> tuple[int, int, int | None]:
        settings = ServerSettings.model_validate({"repository": HERE, **options}).of_worker(grpc_port=7)
        assert settings.grpc_port == 7
        return settings.workers, settings.decode_threads, settings.engine_threads

    assert of_worker(workers=3, engine_threads=0) == (3, 2, 2)
    assert of_worker(workers=0, engine_threads=0) == (8, 1, 1)
    assert of_worker(workers=20, engine_threads=0) == (20, 1, 1)
    assert of_worker(workers=2, decode_threads=7, engine_threads=5) == (2, 7, 5)
    assert ServerSettings(repository=HERE, workers=0).processes == 8
    assert ServerSettings(repository=HERE).decoders == 8


def test_the_limits_of_one_image_come_from_the_options() -> None:
    """The decoder gets the operator's limits."""
    limits = ServerSettings(repository=HERE, max_image_bytes=5, max_image_pixels=6).image_limits
    assert (limits.max_bytes, limits.max_pixels) == (5, 6)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tls_cert_file": "a.pem"}, "--tls-cert-file and --tls-key-file belong together"),
        ({"tls_key_file": "a.key"}, "--tls-cert-file and --tls-key-file belong together"),
        ({"tls_client_ca_file": "ca.pem"}, "--tls-client-ca-file needs TLS"),
    ],
)
def test_an_incomplete_tls_configuration_is_rejected(files: dict[str, str], message: str) -> None:
    """A server never falls back to unencrypted connections."""
    with pytest.raises(ValidationError, match=message):
        ServerSettings.model_validate({"repository": HERE, **files})
