"""The error tree, in the order of bundle errors, then request errors. Independent of status codes.

LenserveError
    UsageError                   the command line or a config file is invalid
    BundleError                  a version on disk is invalid
        InvalidManifest              its manifest does not parse
        DigestMismatch               a file differs from the published one
        ProofFailed                  the loaded network does not reproduce its golden examples
        AliasMoved                   an alias does not name the version that was expected
    StoreError                   an object store cannot be read or written
        StoreConflict                another one wrote the object
    UnsupportedModel             a foreign ONNX file is damaged, or not a classifier of images
    DeviceUnavailable            the requested device is not available
    AddressUnavailable           the server cannot listen on its address
    InvalidRequest               the caller can fix the request
        ImageError                   one image of several is invalid
            EmptyImage
            ImageTooLarge                in bytes or in pixels
            UndecodableImage             truncated, corrupt or not an image
            InvalidPixels                raw pixels whose shape and bytes disagree
        InvalidTensor
        Unsupported                  a part of the protocol that is missing or disabled
        UnknownRegion                no shared memory region of this name
        RegionExists                 a shared memory region of this name exists
    Unauthenticated              the token is missing or unknown
    PermissionDenied             the token does not allow this model
    UnknownModel                 the model, version or alias does not exist
    ModelUnavailable             known, but loading, draining, refused or broken
    Overloaded                   admission control is full: rejected at once
    DeadlineExceeded             the deadline passed before the work began
    EngineError                  the network failed on valid input
        InvalidOutput                its probabilities are NaN, infinite, or do not sum to one
        OutOfMemory                  too little memory: a later attempt may succeed
"""

import re


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of its causes, once they are logged or known to be needless.

    A traceback holds its frames, and those hold the request. If a frame also leads to the error, for example
    through the future that holds it, that is a reference cycle, which only the garbage collector frees.
    """
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is not None:
            chain += (each.__cause__, each.__context__)
            each.__traceback__ = each.__cause__ = each.__context__ = None


class LenserveError(Exception):
    """Base class of all errors that this project raises deliberately. Abstract."""

    @property
    def reason(self) -> str:
        """Error kind for programs: the class name in UPPER_SNAKE_CASE, such as IMAGE_TOO_LARGE."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).upper()


class UsageError(LenserveError):
    """The command line or a config file is invalid."""


class BundleError(LenserveError):
    """A version on disk is invalid."""


class InvalidManifest(BundleError):
    """The manifest does not parse, or holds a value that is not allowed."""


class DigestMismatch(BundleError):
    """A file of a version is missing, or differs from the published one."""


class ProofFailed(BundleError):
    """The loaded network does not reproduce the golden examples of its bundle."""


class AliasMoved(BundleError):
    """An alias does not name the version that was expected: another operator changed it."""


class StoreError(LenserveError):
    """An object store does not answer, refuses, or lacks an object."""


class StoreConflict(StoreError):
    """An object is not what it was when it was read: another one wrote it."""


class UnsupportedModel(LenserveError):
    """A foreign ONNX file is damaged, or is not a classifier of images that can be served."""


class DeviceUnavailable(LenserveError):
    """The requested device is not available."""


class AddressUnavailable(LenserveError):
    """The server cannot listen on the configured address."""


class InvalidRequest(LenserveError):
    """The request is invalid, and its sender can fix it."""


class ImageError(InvalidRequest):
    """One image is invalid; others in the same request may be valid."""


class EmptyImage(ImageError):
    """The image has no bytes or no pixels."""


class ImageTooLarge(ImageError):
    """The image has more bytes or more pixels than the limit."""


class UndecodableImage(ImageError):
    """The image is truncated, corrupt, or not an image."""


class InvalidPixels(ImageError):
    """The shape, dtype and number of bytes of raw pixels contradict each other."""


class InvalidTensor(InvalidRequest):
    """A tensor's name, shape, datatype or number of bytes does not match the model's input."""


class Unsupported(InvalidRequest):
    """The protocol allows this, but the server does not support it or has disabled it."""


class UnknownRegion(InvalidRequest):
    """No shared memory region of this name is registered."""


class RegionExists(InvalidRequest):
    """A shared memory region of this name is already registered."""


class Unauthenticated(LenserveError):
    """The token is missing or unknown."""


class PermissionDenied(LenserveError):
    """The token is valid, but does not allow this model."""


class UnknownModel(LenserveError):
    """The repository has no such model, version or alias.

    Args:
        message: what is unknown.
        known: names that the message lists after it, if not None.
    """

    def __init__(self, message: str, known: tuple[str, ...] | None = None) -> None:
        super().__init__(message)
        self.known = known

    def __str__(self) -> str:
        message = super().__str__()
        return (
            message if self.known is None else f"{message}; known models: {', '.join(self.known) or 'none'}"
        )


class ModelUnavailable(LenserveError):
    """The model is known, but is loading, draining, refused or broken."""


class Overloaded(LenserveError):
    """The server has too much to do; the request was rejected at once.

    Args:
        message: of what it has too much.
        retry_s: after which time a new attempt may succeed; None: unknown.
    """

    def __init__(self, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class DeadlineExceeded(LenserveError):
    """The caller's deadline passed before the work began, so it was skipped."""


class EngineError(LenserveError):
    """The network failed on valid input."""


class InvalidOutput(EngineError):
    """The network's probabilities for an image are NaN or infinite, or do not sum to one."""


class OutOfMemory(EngineError):
    """The device has too little free memory for this network or this batch, or the server for this image."""
