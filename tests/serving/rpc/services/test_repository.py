"""RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload over a real channel."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.bundle import Repository
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.routes import Call
from serving.rpc.services.repository import RepositoryService
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.counting_turns import CountingTurns
from tests.serving.stub import Connect, Stub

SERVICE = "inference.GRPCInferenceService"
INDEX, LOAD, UNLOAD = (f"{SERVICE}/Repository{name}" for name in ("Index", "ModelLoad", "ModelUnload"))


def _infer(model: str = "colours") -> pb.ModelInferRequest:
    pixels = np.zeros((1, 8, 8, 3), np.uint8)  # (N, H, W, C)
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape}
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[pixels.tobytes()])


async def _index(stub: Stub, *, ready: bool = False) -> list[tuple[str, str, str, str]]:
    answer = await stub.call(INDEX, pb.RepositoryIndexRequest(ready=ready))
    return [(each.name, each.version, each.state, each.reason) for each in answer.models]


async def test_the_index_has_every_version_and_its_state(
    publish: Publish, serve: Serve, connect: Connect, repository: Repository
) -> None:
    """A served version, a refused one with its reason, and a model that cannot be read."""
    publish()
    publish(lie=True)
    (repository.root / "damaged").symlink_to("damaged")
    async with serve() as server:
        stub = connect(server.grpc.port)
        every, ready = await _index(stub), await _index(stub, ready=True)

    assert [each[:3] for each in every] == [
        ("colours", "1", "READY"),
        ("colours", "2", "UNAVAILABLE"),
        ("damaged", "", "UNAVAILABLE"),
    ]
    assert every[1][3].startswith("golden probabilities differ by")
    assert "Too many levels of symbolic links" in every[2][3]
    assert ready == [("colours", "1", "READY", "")]


async def test_a_model_is_unloaded_and_loaded(publish: Publish, serve: Serve, connect: Connect) -> None:
    """In between it is UNAVAILABLE, in the index and for requests; a load brings the newest version."""
    publish()
    async with serve(model_control=True) as server:
        stub = connect(server.grpc.port)
        await stub.call(UNLOAD, pb.RepositoryModelUnloadRequest(model_name="colours"))
        index = await _index(stub)
        refusal = await stub.refusal(f"{SERVICE}/ModelInfer", _infer())
        ready = await stub.call(f"{SERVICE}/ModelReady", pb.ModelReadyRequest(name="colours"))
        publish()
        await stub.call(LOAD, pb.RepositoryModelLoadRequest(model_name="colours"))
        answer = await stub.call(f"{SERVICE}/ModelInfer", _infer())

    assert index == [("colours", "", "UNAVAILABLE", "it was unloaded on request")]
    assert (refusal.code, ready.ready) == ("UNAVAILABLE", False)
    assert refusal.message == ("model 'colours' has no version that can answer: it was unloaded on request")
    assert answer.model_version == "2"


@pytest.mark.parametrize("method", ["Load", "Unload"])
async def test_without_model_control_load_and_unload_fail(
    publish: Publish, serve: Serve, connect: Connect, method: str
) -> None:
    """It is off by default. Status code and message are Triton's."""
    publish()
    async with serve() as server:
        stub = connect(server.grpc.port)
        request = getattr(pb, f"RepositoryModel{method}Request")(model_name="colours")
        refusal = await stub.refusal(f"{SERVICE}/RepositoryModel{method}", request)
        index = await _index(stub)

    assert refusal.code == "UNAVAILABLE"
    assert refusal.message.startswith("explicit model load / unload is not allowed")
    assert index == [("colours", "1", "READY", "")]


async def test_a_load_that_fails_says_why(publish: Publish, serve: Serve, connect: Connect) -> None:
    """An unknown model, a refused version, load parameters, and another repository."""
    publish()
    async with serve(model_control=True) as server:
        stub = connect(server.grpc.port)
        publish(lie=True)
        config = {"config": pb.ModelRepositoryParameter(string_param="{}")}
        refusals = [
            await stub.refusal(LOAD, pb.RepositoryModelLoadRequest(**fields))
            for fields in (
                {"model_name": "shapes"},
                {"model_name": "colours"},
                {"model_name": "colours", "parameters": config},
                {"model_name": "colours", "repository_name": "other"},
            )
        ]

    assert [each.code for each in refusals] == ["NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED", "UNIMPLEMENTED"]
    assert refusals[0].message == "failed to load 'shapes': the repository has no such model"
    assert refusals[1].message.startswith("failed to load 'colours': version 2 was refused: ")
    assert refusals[2].message.startswith("load parameter 'config' is not supported")


async def test_a_token_loads_its_own_models_only(
    publish: Publish, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Load and unload check the token as inference does."""
    publish()
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"abc" = ["shapes"]\n')
    async with serve(model_control=True, token_file=file) as server:
        stub = connect(server.grpc.port)
        request = pb.RepositoryModelUnloadRequest(model_name="colours")
        refusal = await stub.refusal(UNLOAD, request, metadata=(("authorization", "Bearer abc"),))

    assert refusal.code == "PERMISSION_DENIED"


class _ManyModels:
    """Models without versions."""

    def __init__(self, count: int) -> None:
        self._names = [f"model-{number}" for number in range(count)]

    def names(self) -> list[str]:
        """All names."""
        return self._names

    def statuses(self) -> list[Any]:
        """None: no version was noticed."""
        return []

    def get(self, _name: str) -> SimpleNamespace:
        """A model."""
        return SimpleNamespace(problem="")


async def test_an_index_of_a_thousand_models_has_a_turn_of_its_own() -> None:
    """It takes 10 ms: those of several calls must not add up in one turn of the event loop."""
    turns = CountingTurns()
    models: Any = _ManyModels(1000)
    service = RepositoryService(models, model_control=False, turns=turns)
    index = await service.index(pb.RepositoryIndexRequest(), Call({}))
    assert len(index.models) == 1000
    assert turns.costs_us == [10_000]
