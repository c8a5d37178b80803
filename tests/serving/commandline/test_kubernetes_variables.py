"""Variables that Kubernetes injects for services whose names begin like our variables."""

from pathlib import Path

import pytest

from serving.cli import Serve
from tests.colours import Publish
from tests.servers import StartServer


@pytest.fixture
def repository_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the command needs."""
    monkeypatch.setenv("LENSERVE_REPOSITORY", str(tmp_path))


@pytest.mark.usefixtures("repository_variable")
@pytest.mark.parametrize("address", ["tcp://10.0.0.1:8001", "udp://10.0.0.1:53", "tcp://[fd00::1]:8001"])
def test_the_address_of_a_service_is_not_read_as_a_port(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """A service called lenserve-grpc; the default applies, and the command knows what it ignored."""
    monkeypatch.setenv("LENSERVE_GRPC_PORT", address)
    monkeypatch.setenv("LENSERVE_GRPC_PORT_8001_TCP_PORT", "8001")
    monkeypatch.setenv("LENSERVE_GRPC_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("lenserve_http_port", "9000")  # a setting, in any case

    assert Serve().grpc_port == 8001
    assert Serve().http_port == 9000
    assert Serve.ignored_variables() == ["LENSERVE_GRPC_PORT"]


@pytest.mark.usefixtures("repository_variable")
def test_a_wrong_port_is_still_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only addresses of services are ignored."""
    monkeypatch.setenv("LENSERVE_GRPC_PORT", "grpc")

    with pytest.raises(ValueError, match="grpc_port"):
        Serve()
    assert Serve.ignored_variables() == []


def test_the_log_says_what_was_ignored(
    publish: Publish, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in a pod beside services called lenserve-grpc and lenserve-http."""
    publish()
    monkeypatch.setenv("LENSERVE_GRPC_PORT", "tcp://10.0.0.1:8001")
    monkeypatch.setenv("LENSERVE_HTTP_PORT", "tcp://10.0.0.1:8002")

    event = start_server().event("variables_ignored")

    assert event["variables"] == "LENSERVE_GRPC_PORT, LENSERVE_HTTP_PORT"
