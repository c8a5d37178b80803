"""How people write addresses, and what gRPC gets."""

import pytest

from serving.client.address import is_loopback, server_address
from serving.errors import UsageError


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:9", "127.0.0.1:9"),
        ("models.example", "models.example:8001"),
        ("models.example:", "models.example:8001"),
        ("dns:80", "dns:80"),
        ("::1", "[::1]:8001"),
        ("[::1]", "[::1]:8001"),
        ("[::1]:9", "[::1]:9"),
        ("fe80::1%eth0", "[fe80::1%eth0]:8001"),
        ("unix:/run/lenserve.sock", "unix:/run/lenserve.sock"),
        ("dns:///models.example:9", "dns:///models.example:9"),
        ("ipv4:127.0.0.1:9", "ipv4:127.0.0.1:9"),
    ],
)
def test_an_address_gets_its_port_and_brackets(written: str, address: str) -> None:
    """The port is 8001 unless it is given; names that gRPC resolves stay as they are."""
    assert server_address(written) == address


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("http://models.example", "server 'http://models.example' is a URL: write models.example:8001"),
        ("http://127.0.0.1:9/path", "is a URL: write 127.0.0.1:9"),
        ("HTTPS://models.example:9", "is a URL: write models.example:9, and set tls_ca_file for TLS"),
        ("grpc://[::1]/", "is a URL: write \\[::1\\]:8001"),
        ("grpc://a:b:c/", "is a URL: write HOST:PORT"),
        ("a:b:c", "server 'a:b:c' is not an address: write HOST:PORT"),
        ("1:2:3:4", "is not an address"),
        ("[127.0.0.1]:9", "is not an address"),
        ("http://", "is a URL: write HOST:PORT"),
        ("", "server '' is not an address: write HOST:PORT"),
        (":8001", "server ':8001' is not an address"),
        ("host/path:1", "is not an address"),
        ("me@host:1", "is not an address"),
        ("host:70000", "server 'host:70000' has the port '70000': write a number from 1 to 65535"),
        ("host:0", "has the port '0'"),
        ("host:http", "has the port 'http'"),
        ("host:" + "9" * 5000, "has the port '9+'"),
        ("[::1", "is not an address"),
        ("h\udcff:1", "is not text in UTF-8"),
    ],
)
def test_what_is_not_an_address_is_refused_with_a_hint(written: str, message: str) -> None:
    """In one line, which names the value and what to write."""
    with pytest.raises(UsageError, match=message):
        server_address(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.:9", True),
        ("a.localhost", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("models.example", False),
        ("localhost.example", False),
        ("::2", False),
    ],
)
def test_this_machine_is_known(written: str, *, expected: bool) -> None:
    """By name and by address."""
    assert is_loopback(server_address(written)) is expected
