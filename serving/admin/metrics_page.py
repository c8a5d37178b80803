"""/metrics: prometheus_client's page, also for HEAD, and with `?name[]=` for some families only."""

from collections.abc import Iterator, Sequence
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, Metric, make_asgi_app
from prometheus_client.registry import Collector

from serving.transports.http.asgi import App, Event, Receive, Send

_BODY = "http.response.body"


class MetricsPage:
    """An ASGI application.

    The library's own filter needs collectors that name their metrics; ours find theirs during a scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._whole: App = make_asgi_app(registry)

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer a request. `name[]` is the name of a family or of a sample, and may be repeated."""
        names = parse_qs(scope["query_string"].decode("latin-1")).get("name[]", [])
        page: App = make_asgi_app(_Named(self._registry, names)) if names else self._whole
        # The library decodes headers as UTF-8.
        headers = [(name, value.decode("latin-1").encode()) for name, value in scope["headers"]]
        plain = {**scope, "headers": headers, "query_string": b""}
        await page(plain, receive, _HeadOnly(send).send if scope["method"] == "HEAD" else send)


class _Named(Collector):
    """The families and samples of a registry that have one of the names."""

    def __init__(self, registry: CollectorRegistry, names: Sequence[str]) -> None:
        self._registry = registry
        self._names = frozenset(names)

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            if family.name in self._names or f"{family.name}_total" in self._names:
                yield family
            elif samples := [each for each in family.samples if each.name in self._names]:
                chosen = Metric(family.name, family.documentation, family.type)
                chosen.samples = samples
                yield chosen


class _HeadOnly:
    """Sends the head that GET would have, without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Event = {}

    async def send(self, event: Event) -> None:
        """Keep the head until the length of the body is known."""
        if event["type"] != _BODY:
            self._start = event
            return
        length = (b"content-length", b"%d" % len(event["body"]))
        await self._send({**self._start, "headers": [*self._start["headers"], length]})
        await self._send({"type": _BODY, "body": b""})
