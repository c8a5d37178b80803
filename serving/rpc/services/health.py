"""grpc.health.v1: the health of the server and of each model, read from `Models`.

The empty service name and the names of our services stand for the server, and need no token. Other names are
models: if tokens are on, the call needs one that allows the model.
"""

from collections.abc import AsyncIterator, Collection, Sequence

from grpc_health.v1 import health_pb2 as pb

from serving.errors import ModelUnavailable, UnknownModel
from serving.models.registry import Models
from serving.rpc.routes import Call, Rpc, Stream, Unary
from serving.turns import Turns

SERVICE = pb.DESCRIPTOR.services_by_name["Health"].full_name

# Of one name in a list, and of a watch that looks again, about.
_STATUS_US, _CHANGE_US = 5, 20

_SERVING: int = pb.HealthCheckResponse.SERVING
_NOT_SERVING: int = pb.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: int = pb.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """Serves Check, List and Watch."""

    def __init__(self, models: Models, services: Collection[str], turns: Turns) -> None:
        self._models = models
        self._services = {"", *services}
        self._turns = turns

    def rpcs(self) -> Sequence[Rpc]:
        """The RPCs of this service. They are probes, which need no token."""
        return (
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self.check, is_probe=True),
            Unary(f"/{SERVICE}/List", pb.HealthListRequest, self.list, is_probe=True),
            Stream(
                f"/{SERVICE}/Watch",
                pb.HealthCheckRequest,
                self.watch,
                is_probe=True,
                grpc_type="server_stream",
            ),
        )

    async def check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        """Return the current status; NOT_FOUND for an unknown name."""
        self._check_may_see(request, call)
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            raise UnknownModel(f"there is no service or model {request.service!r}")
        return pb.HealthCheckResponse(status=status)

    async def list(self, _request: pb.HealthListRequest, call: Call) -> pb.HealthListResponse:
        """Return the status of the server, its services, and the models that the call may name."""
        await self._turns.take(_STATUS_US * len(self._models.names()))
        names = [*self._services, *filter(call.allows, self._models.names())]
        statuses = {name: pb.HealthCheckResponse(status=self._status(name)) for name in names}
        return pb.HealthListResponse(statuses=statuses)

    async def watch(
        self, requests: AsyncIterator[pb.HealthCheckRequest], call: Call
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """Yield the current status and each change of it, until the server stops or the token is invalid."""
        async for request in requests:
            sent = None
            while True:
                change = self._models.change
                self._check_may_see(request, call)
                # Read both before `yield` may pause: the stream must not end before its last status.
                status, draining = self._status(request.service), self._models.draining
                if status != sent:
                    yield pb.HealthCheckResponse(status=status)
                    sent = status
                if draining:
                    return
                await change.wait()
                await self._turns.take(
                    _CHANGE_US
                )  # a change wakes every watch, of which there can be thousands

    def _check_may_see(self, request: pb.HealthCheckRequest, call: Call) -> None:
        if call.grant is not None and request.service not in self._services:
            call.grant.check(request.service)

    def _status(self, service: str) -> int:
        if service in self._services:
            return _serving(self._models.ready)
        try:
            return _serving(self._models.get(service).ready and not self._models.draining)
        except UnknownModel:
            return _SERVICE_UNKNOWN
        except ModelUnavailable:
            return _NOT_SERVING


def _serving(ready: bool) -> int:  # noqa: FBT001 - its only argument
    return _SERVING if ready else _NOT_SERVING
