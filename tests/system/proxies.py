"""Proxies in front of a server, each with its configuration, and whether they are on this machine."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.system.foreign_clients import Command, Missing

_NGINX = """
daemon off;
error_log stderr error;
pid {folder}/nginx.pid;
worker_processes 1;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;  # per connection: nginx closes it after 1,000 by default
    upstream lenserve {{ server 127.0.0.1:{server}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{ grpc_pass grpc://lenserve; grpc_read_timeout 60s; grpc_send_timeout 60s; }}
    }}
}}
"""

_HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port} proto h2
    default_backend lenserve
backend lenserve
    http-reuse always
    server one 127.0.0.1:{server} proto h2
"""


def nginx(folder: Path, port: int, server: int) -> Command:
    """The command of nginx, which opens a connection for each call that is running."""
    program = _program("nginx", "/usr/sbin/nginx")
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, server=server))
    return [program, "-p", folder, "-c", folder / "nginx.conf"]


def haproxy(folder: Path, port: int, server: int) -> Command:
    """The command of haproxy, which shares connections."""
    program = _program("haproxy", "/usr/sbin/haproxy")
    (folder / "haproxy.cfg").write_text(_HAPROXY.format(port=port, server=server))
    return [program, "-db", "-f", folder / "haproxy.cfg"]


def envoy(folder: Path, port: int, server: int) -> Command:
    """The command of Envoy, which sends all calls over one connection of each of its threads."""
    program = _program("envoy")
    (folder / "envoy.json").write_text(json.dumps(_envoy(port, server)))
    return [
        program,
        "-c",
        folder / "envoy.json",
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--use-dynamic-base-id",
    ]


PROXIES: Mapping[str, Callable[[Path, int, int], Command]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "envoy": envoy,
}


def _program(name: str, other: str = "") -> str:
    program = shutil.which(name) or shutil.which(other)
    if program is None:
        raise Missing(f"no {name} on the PATH")
    return program


def _envoy(port: int, server: int) -> dict[str, object]:
    kinds = "type.googleapis.com/envoy.extensions"
    # No timeout of the route, and room for more than 1,024 requests: Envoy's own limits would come first.
    route = {"match": {"prefix": "/"}, "route": {"cluster": "lenserve", "timeout": "0s"}}
    manager = {
        "@type": f"{kinds}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{kinds}.filters.http.router.v3.Router"}}
        ],
    }
    options = {
        "@type": f"{kinds}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    most = {"max_requests": 10_000, "max_pending_requests": 10_000}
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": _address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "lenserve",
                    "type": "STATIC",
                    "circuit_breakers": {"thresholds": [most]},
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
                    },
                    "load_assignment": {
                        "cluster_name": "lenserve",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(server)}}]}],
                    },
                }
            ],
        }
    }


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
