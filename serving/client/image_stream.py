"""The images of a stream and their results, over as many calls as it takes. Independent of channels.

A call that ends early loses nothing: the next one begins with the images that have no result yet. That is
safe because classifying changes nothing on the server. Images are kept until their result comes: as many as
the server reads ahead.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

from serving.client.images import ClientImage
from serving.client.messages import (
    IMAGE_REASONS,
    CallFailed,
    ImageFailure,
    Result,
    code_name,
    decode,
    encode_or_fail,
    encode_request,
)
from serving.pb.lenserve.v1 import classifier_pb2 as pb

Images = Iterable[ClientImage] | AsyncIterable[ClientImage]

_Entry = pb.Image | ImageFailure


class ImageStream:
    """Matches a stream's images with their results, in order. One thread may send while others receive."""

    def __init__(self, images: Images, model: str, top_k: int) -> None:
        self._model = model
        self._top_k = top_k
        self._open: deque[_Entry] = deque()  # read, and without a result yet
        self._sent = 0  # of `_open`, by the current call
        self._call = 0  # its number
        self._lock = threading.Lock()  # of the three
        self._reading = threading.Lock()  # of the source: the thread of a failed call may still wait for it
        self._source = aiter(images) if isinstance(images, AsyncIterable) else iter(images)
        self._pull: asyncio.Task[None] | None = None  # waits for the source
        self._has_ended = False
        self.error: Exception | None = None  # raised by the caller's iterable

    @property
    def is_complete(self) -> bool:
        """Whether all images have their results, except failures at the end."""
        with self._lock:
            return self._has_ended and not any(isinstance(each, pb.Image) for each in self._open)

    def requests(self) -> Iterator[pb.ClassifyRequest]:
        """Yield the requests of a new call: for the images without a result, then for those of the source.

        gRPC iterates in another thread and drops exceptions there, so `error` keeps them.
        """
        call = self._begin()
        while self._call == call:
            if (entry := self._next(call)) is not None:
                if isinstance(entry, pb.Image):
                    yield encode_request([entry], self._model, self._top_k)
            elif self._has_ended:
                return
            elif not isinstance(self._source, AsyncIterator):
                self._read(call, self._source)

    async def requests_async(self) -> AsyncIterator[pb.ClassifyRequest]:
        """The same, from an iterable of either kind."""
        call = self._begin()
        while self._call == call:
            if (entry := self._next(call)) is not None:
                if isinstance(entry, pb.Image):
                    yield encode_request([entry], self._model, self._top_k)
            elif self._has_ended:
                return
            elif isinstance(self._source, AsyncIterator):
                await self._wait_for_image(self._source)
            elif not isinstance(self._source, AsyncIterator):
                self._read(call, self._source)

    async def close(self) -> None:
        """Stop waiting for the source."""
        if self._pull is not None:
            self._pull.cancel()
            await asyncio.wait([self._pull])

    @staticmethod
    def ended_early() -> CallFailed:
        """Return the failure of a call that ended without one, before all images had their results."""
        return CallFailed("UNAVAILABLE", "the server ended the stream")

    def oldest_request(self) -> pb.ClassifyRequest | None:
        """Return the oldest request without a result; None if there is none."""
        with self._lock:
            image = next((each for each in self._open if isinstance(each, pb.Image)), None)
        return None if image is None else encode_request([image], self._model, self._top_k)

    def failures(self) -> Iterator[ImageFailure]:
        """Yield the failures that precede the next response."""
        while self._open and isinstance(failure := self._open[0], ImageFailure):
            self._take()
            yield failure

    def match(self, response: pb.ClassifyStreamResponse) -> Result | pb.ClassifyRequest:
        """Return the result of the oldest image, or its request if it should be sent again.

        Raises:
            CallFailed: the image failed for a reason that affects all, such as an unknown model.
        """
        image = self._take()
        if response.HasField("response"):
            (result,) = decode(response.response)
            return result
        error = response.error
        code = code_name(error.code)
        if error.reason in IMAGE_REASONS:
            return ImageFailure(code, error.reason, error.message)
        failure = CallFailed(code, error.message, cause=error.reason)
        if failure.is_transient and isinstance(image, pb.Image):
            return encode_request([image], self._model, self._top_k)
        raise failure

    def _begin(self) -> int:
        with self._lock:
            self._call += 1
            self._sent = 0
            return self._call

    def _take(self) -> _Entry:
        with self._lock:
            self._sent = max(0, self._sent - 1)  # a failure may not have been passed over yet
            return self._open.popleft()

    def _next(self, call: int) -> _Entry | None:
        """Return the next image that this call has not sent; None if there is none yet."""
        with self._lock:
            if self._call != call or self._sent >= len(self._open):
                return None
            self._sent += 1
            return self._open[self._sent - 1]

    def _read(self, call: int, source: Iterator[ClientImage]) -> None:
        """Read an image from the source. Wait while the thread of another call does."""
        with self._reading:
            if self._call != call or self._sent < len(self._open) or self._has_ended:  # meanwhile
                return
            try:
                self._append(next(source))
            except StopIteration:
                self._has_ended = True
            except Exception as error:  # noqa: BLE001 - the caller's iterable may raise anything
                self.error, self._has_ended = error, True

    async def _wait_for_image(self, source: AsyncIterator[ClientImage]) -> None:
        # A separate task: gRPC cancels what sends when its call ends, and the source must live on.
        if self._pull is None:
            self._pull = asyncio.create_task(self._read_async(source))
        await asyncio.wait([self._pull])

    async def _read_async(self, source: AsyncIterator[ClientImage]) -> None:
        try:
            self._append(await anext(source))
        except StopAsyncIteration:
            self._has_ended = True
        except Exception as error:  # noqa: BLE001 - as in _read
            self.error, self._has_ended = error, True
        finally:
            self._pull = None

    def _append(self, image: ClientImage) -> None:
        entry = encode_or_fail(image)
        with self._lock:
            self._open.append(entry)
