"""The address of a server as people write it -> as gRPC reads it (gRPC's doc/naming.md). Does no I/O."""

import ipaddress
import re

from serving.errors import UsageError

DEFAULT_PORT = 8001

_URL = re.compile(r"(https?|grpcs?)://", re.IGNORECASE)
# Names that gRPC itself resolves: unix:PATH, dns:///HOST, ipv4:ADDRESS and others.
_OTHER_NAME = re.compile(r"(unix|unix-abstract|vsock|dns|ipv4|ipv6|xds):", re.IGNORECASE)
_HIGHEST_PORT = 2**16 - 1


def server_address(server: str) -> str:
    """Return the address for gRPC: with a port, and brackets around an IPv6 address.

    Args:
        server: HOST, HOST:PORT, ADDRESS or [ADDRESS]:PORT, or another name that gRPC resolves.

    Raises:
        UsageError: the address has another form.
    """
    if _URL.match(server):
        raise UsageError(f"server {server!r} is a URL: write {_without_scheme(server)}{_tls_hint(server)}")
    if _OTHER_NAME.match(server) and not re.fullmatch(r"\w+:\d+", server):  # a host may be called dns
        return _encodable(server)
    host, port = _split(server)
    if not host or re.search(r"[\s/@]", host):
        raise UsageError(
            f"server {server!r} is not an address: write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}"
        )
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:9]) <= _HIGHEST_PORT):
        raise UsageError(f"server {server!r} has the port {port!r}: write a number from 1 to {_HIGHEST_PORT}")
    return _encodable(f"{host}:{port}")


def is_loopback(address: str) -> bool:
    """Whether an address that `server_address` returned is this machine, as no proxy can reach it."""
    host = address.rpartition(":")[0].strip("[]").partition("%")[0].lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.removesuffix(".") == "localhost" or host.endswith(".localhost")


def _split(server: str) -> tuple[str, str]:
    """Return the host, in brackets if it is an IPv6 address, and the port."""
    if server.startswith("["):
        host, bracket, rest = server[1:].partition("]")
        return _in_brackets(host) if bracket else "", rest.removeprefix(":") or str(DEFAULT_PORT)
    if server.count(":") > 1:  # an IPv6 address without a port
        return _in_brackets(server), str(DEFAULT_PORT)
    host, _, port = server.partition(":")
    return host, port or str(DEFAULT_PORT)


def _in_brackets(address: str) -> str:
    """Return an IPv6 address in brackets; nothing if it is not one."""
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return ""
    return f"[{address}]"


def _without_scheme(url: str) -> str:
    host = _URL.sub("", url).partition("/")[0]
    try:
        return server_address(host)
    except UsageError:
        return "HOST:PORT"


def _tls_hint(url: str) -> str:
    return ", and set tls_ca_file for TLS" if url[:5].lower() in ("https", "grpcs") else ""


def _encodable(server: str) -> str:
    try:
        server.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"server {server!r} is not text in UTF-8: write HOST:PORT") from error
    return server
