"""grpc.health.v1: the truth about the server and about each model, told from `Models` and kept nowhere else.

The empty service and the names of our services mean the server; any other name means the model of that name.
"""

from collections.abc import AsyncIterator, Collection, Sequence

from grpc_health.v1 import health_pb2 as pb

from serving.errors import ModelUnavailable, UnknownModel
from serving.models.registry import Models
from serving.rpc.routes import Call, Rpc, Stream, Unary

SERVICE = pb.DESCRIPTOR.services_by_name["Health"].full_name

_SERVING: int = pb.HealthCheckResponse.SERVING
_NOT_SERVING: int = pb.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: int = pb.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """Check and Watch, per model."""

    def __init__(self, models: Models, services: Collection[str]) -> None:
        self._models = models
        self._services = {"", *services}

    def rpcs(self) -> Sequence[Rpc]:
        """Its rows of the table. Probes carry no token."""
        return (
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self.check, is_probe=True),
            Stream(f"/{SERVICE}/Watch", pb.HealthCheckRequest, self.watch, is_probe=True),
        )

    async def check(self, request: pb.HealthCheckRequest, _call: Call) -> pb.HealthCheckResponse:
        """The state now; NOT_FOUND for a name that means nothing here."""
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            raise UnknownModel(f"health knows no service or model {request.service!r}")
        return pb.HealthCheckResponse(status=status)

    async def watch(
        self, requests: AsyncIterator[pb.HealthCheckRequest], _call: Call
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The state now and at every change, until the server stops."""
        async for request in requests:
            told = None
            while True:
                change = self._models.change
                # Read before the stream may pause at `yield`: the end must not overtake the last word.
                status, draining = self._status(request.service), self._models.draining
                if status != told:
                    yield pb.HealthCheckResponse(status=status)
                    told = status
                if draining:
                    return
                await change.wait()

    def _status(self, service: str) -> int:
        if service in self._services:
            return _serving(self._models.ready)
        try:
            return _serving(self._models.get(service).ready and not self._models.draining)
        except UnknownModel:
            return _SERVICE_UNKNOWN
        except ModelUnavailable:
            return _NOT_SERVING


def _serving(ready: bool) -> int:  # noqa: FBT001 - the one thing it says
    return _SERVING if ready else _NOT_SERVING
