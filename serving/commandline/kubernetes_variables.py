"""Variables of the environment that Kubernetes sets, and that look like settings.

For a service called lenserve-grpc every pod of its namespace gets LENSERVE_GRPC_PORT=tcp://10.0.0.1:8001,
unless its `enableServiceLinks` is false.
"""

import re
from collections.abc import Iterable, Mapping

_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")


def is_service_address(variable: str, value: str | None) -> bool:
    """Whether a variable holds the address of a Kubernetes service, and no port."""
    return variable.upper().endswith("_PORT") and bool(_ADDRESS.fullmatch(value or ""))


def service_addresses(environment: Mapping[str, str], variables: Iterable[str]) -> list[str]:
    """Return those of the variables that Kubernetes has set."""
    return [name for name in variables if is_service_address(name, environment.get(name))]
