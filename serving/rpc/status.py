"""Domain errors -> gRPC status codes, in one table. Independent of RPC libraries."""

import math
from dataclasses import dataclass, replace
from enum import IntEnum

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from serving import errors

REASON_DOMAIN = "lenserve"
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_CHARACTERS = 500  # a character takes up to 12 bytes in one header and 5 in another


class Code(IntEnum):
    """The status codes of this server, as numbered in gRPC's doc/statuscodes.md."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


_CODES: dict[type[errors.LenserveError], Code] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.Unsupported: Code.UNIMPLEMENTED,
    errors.UnknownRegion: Code.NOT_FOUND,
    errors.RegionExists: Code.ALREADY_EXISTS,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.UnknownModel: Code.NOT_FOUND,
    errors.ModelUnavailable: Code.UNAVAILABLE,
    errors.Overloaded: Code.RESOURCE_EXHAUSTED,
    errors.OutOfMemory: Code.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class Status:
    """The outcome of a call."""

    code: Code
    reason: str
    message: str
    retry_s: float | None = None  # after which the call may be repeated

    def shortened(self) -> "Status":
        """Return the status with a message that fits into headers, in UTF-8: clients accept 8 KiB.

        Half of a surrogate pair, which JSON can quote, is shown as its escape: UTF-8 has none.
        """
        message = self.message.encode("utf-8", "backslashreplace").decode()
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
        return self if message == self.message else replace(self, message=message)

    def details(self, request_id: str) -> bytes:
        """Return a serialized google.rpc.Status for the trailer DETAILS_KEY.

        It has an ErrorInfo, and a RetryInfo if a new attempt may succeed (google/rpc/error_details.proto).
        """
        status = status_pb2.Status(code=self.code, message=self.message)
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain=REASON_DOMAIN, metadata={"request_id": request_id}
        )
        status.details.add().Pack(info)
        if self.retry_s is not None:
            delay = Duration()
            delay.FromMilliseconds(math.ceil(1000 * self.retry_s))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        serialized: bytes = status.SerializeToString()
        return serialized


def code_of(error: BaseException) -> Code:
    """Return the code of the nearest base class in the table, or INTERNAL."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), Code.INTERNAL)


def status_of(error: BaseException, request_id: str) -> Status:
    """Return the status for the client. Unexpected errors get a fixed message: the log has the details."""
    if isinstance(error, MemoryError):
        return Status(
            Code.RESOURCE_EXHAUSTED,
            "OUT_OF_MEMORY",
            "the server has too little memory for this request: try again, or send less at once",
        )
    code = code_of(error)
    if code is Code.INTERNAL or not isinstance(error, errors.LenserveError):
        return Status(
            Code.INTERNAL, "INTERNAL", f"the server failed; its log has the reason under request {request_id}"
        )
    return Status(code, error.reason, str(error), getattr(error, "retry_s", None))
