"""What each server is asked, and the proof that it answers as ONNX Runtime does before anything is timed."""

import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.wrappers_pb2 import BytesValue

from serving.bundle import Bundle
from serving.pb.inference import grpc_service_pb2 as pb
from tests.benchmarks.load import Request, framed
from tests.benchmarks.networks import peer_network
from tests.benchmarks.peers.preparation import open_session, preparation

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes], Floats]

INFER = "/inference.GRPCInferenceService/ModelInfer"
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_TUTORIAL = "/tutorial.Classifier/Classify"
_ANSWERING_TIMEOUT_S = 30
_STREAM_MESSAGES = 500
_POLL_S = 0.05


def infer_message(bundle: Bundle, payload: Pixels | bytes) -> pb.ModelInferRequest:
    """KServe v2: pixels (N, H, W, C) uint8, or one encoded image."""
    if isinstance(payload, bytes):
        raw, datatype, shape = len(payload).to_bytes(4, "little") + payload, "BYTES", [1]
    else:
        raw, datatype, shape = payload.tobytes(), "UINT8", list(payload.shape)
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")
    return pb.ModelInferRequest(
        model_name=bundle.model, inputs=[tensor], outputs=[wanted], raw_input_contents=[raw]
    )


def infer_request(bundle: Bundle, payload: Pixels | bytes) -> Request:
    """KServe v2 as a request of h2load, for our server."""
    return Request(INFER, framed(infer_message(bundle, payload).SerializeToString()))


def stream_request(bundle: Bundle, payload: Pixels | bytes) -> Request:
    """KServe v2 over a stream of so many images that its start costs nothing beside them."""
    message = framed(infer_message(bundle, payload).SerializeToString())
    return Request(_STREAM, message * _STREAM_MESSAGES, messages=_STREAM_MESSAGES)


def triton_request(bundle: Bundle, payload: Pixels | bytes) -> Request:
    """The same for Triton, where BYTES have a batch axis as every input has."""
    message = infer_message(bundle, payload)
    if isinstance(payload, bytes):
        message.inputs[0].shape[:] = [1, 1]
    return Request(INFER, framed(message.SerializeToString()))


def tutorial_request(_bundle: Bundle, payload: Pixels | bytes) -> Request:
    """The tutorial's own small message."""
    return Request(_TUTORIAL, framed(BytesValue(value=_plain(payload)).SerializeToString()))


def mosec_request(_bundle: Bundle, payload: Pixels | bytes) -> Request:
    """Nothing but the bytes."""
    return Request("/inference", _plain(payload), headers={}, http1=True)


def onnx_answer(bundle: Bundle, payload: Pixels | bytes) -> Floats:
    """What the peers' network says of it without any server: (N, K)."""
    session = open_session(peer_network(bundle))
    images = preparation(session)(payload)[None] if isinstance(payload, bytes) else payload
    (probabilities,) = session.run(["probabilities"], {session.get_inputs()[0].name: images})
    return np.asarray(probabilities)


def proven(request: Request, port: int, expected: Floats) -> Request:
    """The request, with the length that a good answer has, once a real client has got that answer.

    Raises:
        SystemExit: nobody answers, or other probabilities than expected (N, K).
    """
    answers = _ask_until_answered(request, port)
    # Decoders of JPEG may differ by a level or two, which moves a probability by a few per cent of itself.
    tolerance = 0.05 * expected.max()
    for answer in answers:
        probabilities = _decode(request, answer).reshape(expected.shape)  # (N, K)
        if np.abs(probabilities - expected).max() > tolerance:
            raise SystemExit(f"{request.path} at port {port} gives other probabilities than ONNX Runtime")
    if len(answers) != request.messages:
        raise SystemExit(f"{request.path} gives {len(answers)} answers to {request.messages} messages")
    framing = 0 if request.http1 else len(framed(b""))
    return replace(request, answer_bytes=sum(framing + len(answer) for answer in answers))


def _ask_until_answered(request: Request, port: int) -> list[bytes]:
    end_s = time.monotonic() + _ANSWERING_TIMEOUT_S
    while True:
        try:
            return _ask(request, port)
        except (grpc.RpcError, OSError) as error:
            if time.monotonic() > end_s:
                raise SystemExit(f"{request.path} at port {port} does not answer: {error}") from error
            time.sleep(_POLL_S)


def _ask(request: Request, port: int) -> list[bytes]:
    if request.http1:
        url = f"http://127.0.0.1:{port}{request.path}"
        with urllib.request.urlopen(url, request.body, timeout=_ANSWERING_TIMEOUT_S) as response:
            return [response.read()]
    message = request.body[len(framed(b"")) : len(request.body) // request.messages]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        if request.messages == 1:
            return [channel.unary_unary(request.path)(message, timeout=_ANSWERING_TIMEOUT_S)]
        call = channel.stream_stream(request.path)  # bytes in, bytes out
        return list(call(iter([message] * request.messages), timeout=_ANSWERING_TIMEOUT_S))


def _decode(request: Request, answer: bytes) -> Floats:
    if request.path == INFER:
        answer = pb.ModelInferResponse.FromString(answer).raw_output_contents[0]
    elif request.path == _STREAM:
        answer = pb.ModelStreamInferResponse.FromString(answer).infer_response.raw_output_contents[0]
    elif request.path == _TUTORIAL:
        answer = BytesValue.FromString(answer).value
    return np.frombuffer(answer, "<f4")


def _plain(payload: Pixels | bytes) -> bytes:
    return payload if isinstance(payload, bytes) else payload.tobytes()
