"""inference.GRPCInferenceService over a real channel: every method, field by field."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from PIL import Image

from serving import __version__
from serving.bundle import Repository
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference import tensors
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import ServeGated
from tests.serving.stub import Connect, Stub

SERVICE = "inference.GRPCInferenceService"
INFER = f"{SERVICE}/ModelInfer"
GREEN = np.full((1, 8, 8, 3), (0, 255, 0), np.uint8)  # (N, H, W, C)


def _png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def _infer(
    pixels: np.ndarray | None = None,
    *,
    raw: bytes | None = None,
    datatype: str = "UINT8",
    **fields: Any,
) -> pb.ModelInferRequest:
    pixels = GREEN if pixels is None else pixels
    tensor = {"name": "image", "datatype": datatype, "shape": fields.pop("shape", pixels.shape)}
    return pb.ModelInferRequest(
        **{
            "model_name": "colours",
            "inputs": [tensor],
            "raw_input_contents": [pixels.tobytes() if raw is None else raw],
            **fields,
        }
    )


def _array(answer: pb.ModelInferResponse, place: int = 0) -> np.ndarray:
    return np.frombuffer(answer.raw_output_contents[place], "<f4").reshape(answer.outputs[place].shape)


@pytest.fixture
async def stub(publish: Publish, serve: Serve, connect: Connect) -> AsyncIterator[Stub]:
    """A stub of a server with one model, and a limit of 4 images."""
    publish()
    async with serve(max_images=4, max_queue_delay_s=0.001) as server:
        yield connect(server.grpc.port)


async def test_the_server_is_live_and_ready(stub: Stub) -> None:
    """Both probes return true."""
    live = await stub.call(f"{SERVICE}/ServerLive", pb.ServerLiveRequest())
    ready = await stub.call(f"{SERVICE}/ServerReady", pb.ServerReadyRequest())

    assert (live.live, ready.ready) == (True, True)


async def test_a_starting_server_is_live_and_not_ready(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Until the first scan of the repository has ended."""
    publish()
    async with serve_gated(scanned=False) as server:
        stub = connect(server.grpc.port)
        live = await stub.call(f"{SERVICE}/ServerLive", pb.ServerLiveRequest())
        ready = await stub.call(f"{SERVICE}/ServerReady", pb.ServerReadyRequest())
        model = await stub.call(f"{SERVICE}/ModelReady", pb.ModelReadyRequest(name="colours"))

    assert (live.live, ready.ready, model.ready) == (True, False, False)


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("colours", "", True),
        ("colours", "1", True),
        ("colours", "2", False),
        ("colours", "canary", False),
        ("shapes", "", False),
        ("", "", False),
    ],
)
async def test_a_model_is_ready_if_it_can_answer(
    stub: Stub,
    name: str,
    version: str,
    *,
    ready: bool,
) -> None:
    """An unknown model is not ready, which is not an error: Triton's own test expects that."""
    answer = await stub.call(f"{SERVICE}/ModelReady", pb.ModelReadyRequest(name=name, version=version))

    assert answer.ready is ready


async def test_server_metadata_lists_the_extensions(stub: Stub) -> None:
    """perf_analyzer reads statistics if `statistics` is listed."""
    answer = await stub.call(f"{SERVICE}/ServerMetadata", pb.ServerMetadataRequest())

    assert json_format.MessageToDict(answer) == {
        "name": "lenserve",
        "version": __version__,
        "extensions": [
            "classification",
            "model_configuration",
            "model_repository",
            "binary_tensor_data",
            "parameters",
            "statistics",
        ],
    }


async def test_model_metadata_names_versions_and_tensors(stub: Stub) -> None:
    """One input and one output, with the batch dimension -1."""
    answer = await stub.call(f"{SERVICE}/ModelMetadata", pb.ModelMetadataRequest(name="colours"))

    actual = json_format.MessageToDict(answer)
    assert actual.pop("properties")["recipe"] == "colours"
    assert actual == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "3"]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": ["-1", "3"]}],
    }


async def test_model_config_has_the_fields_that_tritons_clients_read(stub: Stub) -> None:
    """Dimensions without the batch; max_batch_size is the limit on images in a request."""
    answer = await stub.call(f"{SERVICE}/ModelConfig", pb.ModelConfigRequest(name="colours", version="1"))

    actual = json_format.MessageToDict(answer.config, preserving_proto_field_name=True)
    actual.pop("dynamic_batching")
    assert actual == {
        "name": "colours",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 4,
        "input": [
            {"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": ["8", "8", "3"]}
        ],
        "output": [
            {
                "name": "probabilities",
                "data_type": "TYPE_FP32",
                "dims": ["3"],
                "label_filename": "manifest.json",
            }
        ],
    }
    assert answer.config.HasField("dynamic_batching")


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelInfer"])
async def test_unknown_models_and_versions_are_not_found(stub: Stub, method: str) -> None:
    """Every method that describes or runs a model answers NOT_FOUND with the same messages."""

    def request(name: str, version: str) -> Message:
        if method == "ModelInfer":
            return _infer(model_name=name, model_version=version)
        described: Message = getattr(pb, f"{method}Request")(name=name, version=version)
        return described

    refusals = [
        await stub.refusal(f"{SERVICE}/{method}", request(*asked))
        for asked in (("shapes", ""), ("colours", "7"), ("colours", "canary"))
    ]

    assert {refusal.code for refusal in refusals} == {"NOT_FOUND"}
    assert [refusal.message for refusal in refusals] == [
        "there is no model 'shapes'; known models: colours",
        (
            "version 7 of model 'colours' is not served; served versions: 1; if it is published, promote it "
            "(`lenserve models promote colours@7`), or give it an alias"
        ),
        "model 'colours' has no alias 'canary'; known aliases: none",
    ]


async def test_a_version_number_beyond_64_bits_is_rejected(stub: Stub) -> None:
    """The message has only its first digits."""
    refusal = await stub.refusal(INFER, _infer(model_version="9" * 5000))

    assert (refusal.code, refusal.message) == (
        "INVALID_ARGUMENT",
        f"version {'9' * 32} is not a version number",
    )


async def test_a_tensor_is_inferred(stub: Stub) -> None:
    """Model, version, id, one FP32 output in raw_output_contents, no typed contents."""
    answer = await stub.call(INFER, _infer(np.concatenate([GREEN, GREEN[..., ::-1]]), id="request 7"))

    assert (answer.model_name, answer.model_version, answer.id) == ("colours", "1", "request 7")
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("probabilities", "FP32", [2, 3])
    ]
    assert not answer.outputs[0].HasField("contents")
    expected = np.exp([0, 4, 0]) / np.exp([0, 4, 0]).sum()
    np.testing.assert_allclose(_array(answer), [expected] * 2, atol=1e-6)


async def test_a_known_request_still_needs_its_token(
    publish: Publish, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """A repeated request is answered, but not to a client whose token does not allow the model."""
    publish()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[tokens]\nfor-colours = ["colours"]\nfor-shapes = ["shapes"]\n')
    async with serve(token_file=tokens) as server:
        stub = connect(server.grpc.port)
        known = {"metadata": (("authorization", "Bearer for-colours"),)}
        answers = [await stub.call(INFER, _infer(), **known) for _ in range(3)]
        other = await stub.call(INFER, _infer(255 - GREEN), **known)
        refusal = await stub.refusal(INFER, _infer(), metadata=(("authorization", "Bearer for-shapes"),))

    assert answers[0] == answers[1] == answers[2] != other
    assert refusal.code == "PERMISSION_DENIED"


async def test_an_unknown_region_is_not_cached(stub: Stub) -> None:
    """Clients choose the names of regions, and they may be long."""
    before = tensors._output_metadata.cache_info().currsize
    region = {
        "shared_memory_region": pb.InferParameter(string_param="r" * 10_000),
        "shared_memory_byte_size": pb.InferParameter(int64_param=12),
    }
    outputs = [{"name": "probabilities", "parameters": region}]

    for _ in range(3):
        assert (await stub.refusal(INFER, _infer(outputs=outputs))).code == "NOT_FOUND"

    assert tensors._output_metadata.cache_info().currsize == before


async def test_typed_and_raw_contents_give_the_same(stub: Stub) -> None:
    """uint_contents instead of raw_input_contents."""
    contents = pb.InferTensorContents(uint_contents=GREEN.ravel().tolist())
    tensor = {"name": "image", "datatype": "UINT8", "shape": GREEN.shape, "contents": contents}

    typed = await stub.call(INFER, pb.ModelInferRequest(model_name="colours", inputs=[tensor]))
    raw = await stub.call(INFER, _infer())

    assert typed == raw


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_encoded_images_are_inferred_raw_and_typed(stub: Stub, shape: list[int]) -> None:
    """BYTES hold files of any size; raw and typed contents give the same response."""
    files = [_png((255, 0, 0)), _png((0, 0, 255), (5, 3))]
    framed = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    contents = pb.InferTensorContents(bytes_contents=files)
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape, "contents": contents}

    raw = await stub.call(INFER, _infer(raw=framed, datatype="BYTES", shape=shape))
    typed = await stub.call(INFER, pb.ModelInferRequest(model_name="colours", inputs=[tensor]))

    assert raw == typed
    assert _array(raw).argmax(axis=1).tolist() == [0, 2]


async def test_outputs_are_returned_by_name_and_in_order(stub: Stub) -> None:
    """The embedding on request; probabilities and classes can be combined."""
    classes = {"name": "probabilities", "parameters": {"classification": pb.InferParameter(int64_param=1)}}
    wanted = [{"name": "embedding"}, {"name": "probabilities"}, classes]

    answer = await stub.call(INFER, _infer(outputs=wanted))

    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("embedding", "FP32", [1, 3]),
        ("probabilities", "FP32", [1, 3]),
        ("probabilities", "BYTES", [1, 1]),
    ]
    np.testing.assert_allclose(_array(answer, 0), [[0, 255, 0]])
    value = f"{_array(answer, 1)[0, 1]:f}"
    element = f"{value}:1:green".encode()
    assert answer.raw_output_contents[2] == len(element).to_bytes(4, "little") + element


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(
            _infer(np.zeros((1, 8, 9, 3), np.uint8)),
            "unexpected shape for input 'image' for model 'colours'. "
            "Expected [-1, 8, 8, 3], got [1, 8, 9, 3]",
            id="shape",
        ),
        pytest.param(
            _infer(raw=bytes(191)),
            "input byte size mismatch for input 'image' for model 'colours'. Expected 192, got 191",
            id="byte-count",
        ),
        pytest.param(
            _infer(datatype="FP32"),
            "inference input 'image' data-type is 'FP32', "
            "but model 'colours' expects 'UINT8', or 'BYTES' of encoded images",
            id="datatype",
        ),
        pytest.param(
            _infer(np.zeros((5, 8, 8, 3), np.uint8)), "the request has 5 images, expected 1 to 4", id="batch"
        ),
        pytest.param(
            _infer(raw=b"", datatype="BYTES", shape=[0]),
            "the request has 0 images, expected 1 to 4",
            id="no-images",
        ),
        pytest.param(
            _infer(raw=b"\x03\0\0\0abc", datatype="BYTES", shape=[1]),
            "image 0: the image cannot be decoded: unknown image format (3 bytes)",
            id="no-image",
        ),
        pytest.param(
            _infer(parameters={"sequence_id": pb.InferParameter(int64_param=1)}),
            "the parameter 'sequence_id' makes the request part of a sequence, "
            "but model 'colours' keeps no state between requests: remove the parameter",
            id="sequence",
        ),
        pytest.param(
            _infer(outputs=[{"name": "logits"}]),
            "unexpected inference output 'logits' for model 'colours'",
            id="output",
        ),
        pytest.param(
            _infer(
                outputs=[
                    {
                        "name": "probabilities",
                        "parameters": {"classification": pb.InferParameter(int64_param=0)},
                    }
                ]
            ),
            "invalid value for 'classification' parameter, expected > 0, got 0",
            id="classification",
        ),
    ],
)
async def test_invalid_requests_are_rejected(
    stub: Stub,
    request_: pb.ModelInferRequest,
    message: str,
) -> None:
    """INVALID_ARGUMENT, in Triton's words."""
    refusal = await stub.refusal(INFER, request_)

    assert (refusal.code, refusal.message) == ("INVALID_ARGUMENT", message)


async def test_a_timeout_ends_the_wait_in_the_queue(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """A request whose `timeout` passes in the queue is not run, even if its call has more time."""
    publish()
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        running = stub.start(INFER, _infer())
        await asyncio.to_thread(server.engine.entered.wait, 10)
        late = stub.start(INFER, _infer(parameters={"timeout": pb.InferParameter(int64_param=1)}))
        in_time = stub.start(INFER, _infer(parameters={"timeout": pb.InferParameter(int64_param=10**8)}))
        async with asyncio.timeout(10):
            while server.classifier.admission.pending < 3:  # noqa: ASYNC110 - arrivals have no event
                await asyncio.sleep(0)
        server.engine.gate.set()
        await asyncio.gather(running, in_time)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.engine.runs == [1, 1]


async def test_urgent_requests_run_first(publish: Publish, serve_gated: ServeGated, connect: Connect) -> None:
    """Of the waiting requests, one of priority 9 is answered after those of the default priority."""
    publish()
    answered: list[int] = []
    async with serve_gated(max_batch_size=1) as server:
        stub = connect(server.grpc.port)

        async def ask(priority: int) -> None:
            await stub.start(INFER, _infer(parameters={"priority": pb.InferParameter(uint64_param=priority)}))
            answered.append(priority)

        server.engine.close()
        calls = [asyncio.create_task(ask(7))]
        await asyncio.to_thread(server.engine.entered.wait, 10)
        for waiting, priority in enumerate((9, 0, 0), 2):
            calls.append(asyncio.create_task(ask(priority)))
            async with asyncio.timeout(10):
                while server.classifier.admission.pending < waiting:  # noqa: ASYNC110 - arrivals have no event
                    await asyncio.sleep(0)
        server.engine.gate.set()
        await asyncio.gather(*calls)

    assert answered == [7, 0, 0, 9]


async def test_metadata_lists_all_served_versions_or_the_requested_one(
    publish: Publish,
    serve: Serve,
    connect: Connect,
    repository: Repository,
) -> None:
    """An alias works in place of a version, and the response has the number."""
    publish()
    publish(rotate=1)
    repository.set_alias("colours", "stable", 1)
    repository.set_alias("colours", "canary", 2)
    metadata = f"{SERVICE}/ModelMetadata"
    async with serve() as server:
        stub = connect(server.grpc.port)
        every = await stub.call(metadata, pb.ModelMetadataRequest(name="colours"))
        canary = await stub.call(metadata, pb.ModelMetadataRequest(name="colours", version="canary"))
        answer = await stub.call(INFER, _infer(model_version="canary"))
        default = await stub.call(INFER, _infer())

    assert (list(every.versions), list(canary.versions)) == (["1", "2"], ["2"])
    assert (answer.model_version, default.model_version) == ("2", "1")
