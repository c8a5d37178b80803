"""The HTTP port for operators: /metrics, /livez and /readyz, served by a separate thread."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from serving.errors import AddressUnavailable

_STOP_POLL_S = 0.05  # upper bound on the delay of a stop; the library's default is 0.5 s

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class HttpServer:
    """Answers scrapes and probes. Its threads only read state that the event loop writes."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        registry: CollectorRegistry,
        live: Callable[[], bool],
        ready: Callable[[], bool],
        problem: Callable[[], str] = lambda: "no",
    ) -> None:
        """Store the options.

        Args:
            host: address to listen on.
            port: port to listen on; 0 picks a free one.
            registry: metrics shown at /metrics.
            live: returns the result of /livez.
            ready: returns the result of /readyz.
            problem: returns the body of a failed probe.
        """
        self.host = host
        self.port = port
        self._metrics = make_wsgi_app(registry)
        self._probes = {"/livez": live, "/readyz": ready}
        self._problem = problem
        # A scrape of 1,000 models takes 0.5 s. Several at once would take the interpreter from requests.
        self._one_scrape = threading.Lock()
        self._server: _Server | None = None

    async def __aenter__(self) -> Self:
        try:
            server = make_server(self.host, self.port, self._answer, _Server, _QuietHandler)
        except OSError as error:
            raise AddressUnavailable(
                f"HTTP cannot listen on {self.host}:{self.port}: {error.strerror}; "
                "set another --http-port or --host"
            ) from error
        self._server = server
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(_STOP_POLL_S,), name="http", daemon=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            with self._one_scrape:
                return self._metrics(environ, start_response)  # type: ignore[no-any-return]
        probe = self._probes.get(path)
        if probe is None:
            return _text(start_response, "404 Not Found", "not found: try /metrics, /livez or /readyz")
        return (
            _text(start_response, "200 OK", "ok")
            if probe()
            else _text(start_response, "503 Service Unavailable", self._problem())
        )


def _text(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a client that hangs must not delay a stop


class _QuietHandler(WSGIRequestHandler):
    timeout = 30  # seconds for a client to send its request

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the signature of the base class
        """Log nothing: probes come every second."""
