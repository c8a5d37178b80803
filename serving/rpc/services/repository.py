"""Repository methods of inference.GRPCInferenceService: index, load and unload."""

from collections.abc import Iterator, Sequence

from serving.errors import ModelUnavailable, Unsupported
from serving.models.registry import Models
from serving.models.versions import State
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.routes import Call, Rpc, Unary
from serving.turns import Turns

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_STATES = {State.READY: "READY", State.LOADING: "LOADING"}

_INDEX_US = 10  # of one model, about

_Change = pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest


class RepositoryService:
    """Lists models for Triton's tools; loads and unloads them if model control is on."""

    def __init__(self, models: Models, *, model_control: bool, turns: Turns) -> None:
        self._models = models
        self._model_control = model_control
        self._turns = turns

    def rpcs(self) -> Sequence[Rpc]:
        """The RPCs of this service."""
        prefix = f"/{_SERVICE}/Repository"
        name = "model_name"
        return (
            Unary(f"{prefix}Index", pb.RepositoryIndexRequest, self.index),
            Unary(f"{prefix}ModelLoad", pb.RepositoryModelLoadRequest, self.load, model_field=name),
            Unary(f"{prefix}ModelUnload", pb.RepositoryModelUnloadRequest, self.unload, model_field=name),
        )

    async def index(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        """List each version that is served, loading or refused, and each model without versions.

        A call sees the models that its token allows.
        """
        _check_repository(request.repository_name)
        await self._turns.take(_INDEX_US * len(self._models.names()))
        models = [
            each
            for each in self._index()
            if call.allows(each.name) and (each.state == "READY" or not request.ready)
        ]
        return pb.RepositoryIndexResponse(models=models)

    async def load(
        self, request: pb.RepositoryModelLoadRequest, _call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Load the current versions of one model from the repository."""
        self._check(request)
        for name in request.parameters:
            raise Unsupported(
                f"load parameter {name!r} is not supported: publish a version to the repository instead"
            )
        await self._models.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(
        self, request: pb.RepositoryModelUnloadRequest, _call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model. `unload_dependents` has no effect: models do not depend on each other."""
        self._check(request)
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _check(self, request: _Change) -> None:
        if not self._model_control:
            raise ModelUnavailable(
                "explicit model load / unload is not allowed: start the server with --model-control"
            )
        _check_repository(request.repository_name)

    def _index(self) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
        index = pb.RepositoryIndexResponse.ModelIndex
        statuses = self._models.statuses()
        for each in statuses:
            state = _STATES.get(each.state, "UNAVAILABLE")
            yield index(name=each.model, version=str(each.version), state=state, reason=each.reason)
        for name in set(self._models.names()) - {each.model for each in statuses}:
            yield index(name=name, state="UNAVAILABLE", reason=self._models.get(name).problem)


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported(f"unknown repository {name!r}: the server has one, leave its name empty")
