"""ModelInfer requests, from bytes: what clients say again and again is read once.

Fields are written in the order of their numbers, so the raw contents of the input end a request. What comes
before them is a message of its own, and a client that sends images of one size repeats it byte for byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from serving.bundle.images import Pixels
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.open_inference.tensors import WantedOutput, decode_input, decode_outputs
from serving.rpc.open_inference.wire import tag_and_length

_RAW_INPUT_CONTENTS = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER

_MAX_HEAD_BYTES = 1024
_MAX_SIZES = 256
_MAX_HEADS_OF_A_SIZE = 8


@dataclass(frozen=True, slots=True)
class _Head:
    """All that comes before the first pixel. Many requests share it, and none may change it."""

    data: bytes  # to the length of the raw contents
    message: pb.ModelInferRequest  # without them
    shape: tuple[int, ...]  # (N, H, W, C)
    wanted: Sequence[WantedOutput]


@dataclass(slots=True)
class InferRequest:
    """A request as it came. Where its head was known, the message lacks the raw contents."""

    data: bytes
    message: pb.ModelInferRequest
    head: _Head | None = None

    @property
    def model_name(self) -> str:
        """Of the model that is to answer."""
        name: str = self.message.model_name
        return name


class RequestReader:
    """Reads requests. A class because it remembers the heads of those that it could decode."""

    def __init__(self) -> None:
        self._heads: dict[int, list[_Head]] = {}  # by the size of a whole request

    def read(self, data: bytes) -> InferRequest:
        """A request from bytes.

        Raises:
            DecodeError: they are none.
        """
        for head in self._heads.get(len(data), ()):
            if data.startswith(head.data):
                return InferRequest(data, head.message, head)
        return InferRequest(data, pb.ModelInferRequest.FromString(data))

    def decode(
        self, request: InferRequest, regions: Regions
    ) -> tuple[Pixels | list[bytes], Sequence[WantedOutput]]:
        """The input of a request, as `decode_input` gives it, and the outputs that it wants.

        Raises:
            InvalidTensor, UnknownRegion: as `decode_input` and `decode_outputs`.
        """
        head = request.head
        if head is not None:
            return np.ndarray(head.shape, np.uint8, request.data, len(head.data)), head.wanted  # (N, H, W, C)
        wanted = decode_outputs(request.message)
        given = decode_input(request.message, regions)
        if isinstance(given, np.ndarray):
            self._remember(request, given, wanted)
        return given, wanted

    def _remember(self, request: InferRequest, pixels: Pixels, wanted: Sequence[WantedOutput]) -> None:
        """Remember the head, where nothing follows the pixels."""
        if request.message.id or not request.message.raw_input_contents:
            return  # an id comes but once
        before_pixels = tag_and_length(_RAW_INPUT_CONTENTS, pixels.size)
        start = len(request.data) - pixels.size
        end = start - len(before_pixels)
        if not 0 <= end <= _MAX_HEAD_BYTES or not request.data.startswith(before_pixels, end):
            return
        try:
            message = pb.ModelInferRequest.FromString(request.data[:end])
        except DecodeError:  # it ends inside another field, in which something looks like raw contents
            return
        size = len(request.data)
        if size not in self._heads and len(self._heads) >= _MAX_SIZES:
            del self._heads[next(iter(self._heads))]
        heads = self._heads.setdefault(size, [])
        if len(heads) >= _MAX_HEADS_OF_A_SIZE:
            del heads[0]
        heads.append(_Head(request.data[:start], message, pixels.shape, wanted))
