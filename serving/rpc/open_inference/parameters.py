"""Parameters of an inference request: applies priority and timeout, rejects sequences, ignores the rest.

Triton ignores unknown parameters too: its clients send their own.
"""

import time

from serving.errors import InvalidRequest
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.requests import InferRequest

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_US_PER_S = 1e6


def decode_scheduling(request: InferRequest, deadline_s: float) -> tuple[float, int]:
    """Return the deadline and the priority of a request.

    Args:
        request: a request; its parameter `timeout` is in microseconds.
        deadline_s: deadline of the call.

    Returns: the deadline on the clock of time.monotonic(), and the priority: 0 is the default; lower numbers
        run before higher ones.

    Raises:
        InvalidRequest: a parameter has the wrong type or range, or belongs to a sequence.
    """
    if not request.parameters:  # almost always
        return deadline_s, 0
    for name in _SEQUENCE:
        if name in request.parameters and _is_set(request.parameters[name]):
            raise InvalidRequest(
                f"the parameter {name!r} makes the request part of a sequence, but model "
                f"{request.model_name!r} keeps no state between requests: remove the parameter"
            )
    timeout_us = _whole_number(request, "timeout")
    if timeout_us:
        deadline_s = min(deadline_s, time.monotonic() + timeout_us / _US_PER_S)
    return deadline_s, _whole_number(request, "priority")


def _whole_number(request: InferRequest, name: str) -> int:
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(
            f"invalid value type for {name!r} parameter, expected int64_param or uint64_param, got {kind}"
        )
    value: int = getattr(parameter, kind)
    if value < 0:
        raise InvalidRequest(f"invalid value for {name!r} parameter, expected >= 0, got {value}")
    return value


def _is_set(parameter: pb.InferParameter) -> bool:
    kind = parameter.WhichOneof("parameter_choice")
    return kind is not None and bool(getattr(parameter, kind))
