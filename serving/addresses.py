"""Network addresses as text, in logs and messages: HOST:PORT, with brackets around an IPv6 address."""

_MAPPED = "::ffff:"  # an IPv4 client of a socket for both, RFC 4291, section 2.5.5.2


def without_brackets(host: str) -> str:
    """Return a host as the socket library takes it: [::1] is ::1."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT."""
    host = without_brackets(host)
    if host.startswith(_MAPPED) and "." in host:
        host = host.removeprefix(_MAPPED)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
