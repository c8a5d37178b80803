"""The error tree, in the order in which a bundle and then a request can fail. Knows no status codes.

LenserveError
    UsageError                   the command line or a config file is wrong
    BundleError                  a version on disk cannot be trusted
        InvalidManifest              its manifest does not parse
        DigestMismatch               a file is not the one that was published
        ProofFailed                  the loaded network does not reproduce its golden examples
    DeviceUnavailable            a device was asked for that is not there
    AddressUnavailable           a server cannot listen where it was told to
    InvalidRequest               the caller can mend it
        ImageError                   one image of several
            EmptyImage
            ImageTooLarge                in bytes or in pixels
            UndecodableImage             truncated, corrupt, or no image at all
            InvalidPixels                raw pixels whose shape and bytes disagree
        InvalidTensor
        Unsupported                  a part of the protocol that this server does not have, or that is off
        UnknownRegion                no shared memory of that name was registered
        RegionExists                 one was already
    Unauthenticated              no token, or a wrong one
    PermissionDenied             the token is not for this model
    UnknownModel                 no such model, version or alias
    ModelUnavailable             known, but loading, draining, refused or broken
    Overloaded                   the door is full: refused at once
    DeadlineExceeded             too late: the work was not done
    EngineError                  the network itself failed
        OutOfMemory                  for lack of memory, and may succeed when there is more
"""

import re


class LenserveError(Exception):
    """Root of everything this project raises on purpose. Never raised itself."""

    @property
    def reason(self) -> str:
        """The kind of error for machines: the class name in UPPER_SNAKE_CASE."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).upper()


class UsageError(LenserveError):
    """The command line or a config file is wrong."""


class BundleError(LenserveError):
    """A version on disk cannot be trusted."""


class InvalidManifest(BundleError):
    """The manifest does not parse, or says something impossible."""


class DigestMismatch(BundleError):
    """A file of a version is missing, or is not the one that was published."""


class ProofFailed(BundleError):
    """The loaded network does not reproduce the golden examples of its bundle."""


class DeviceUnavailable(LenserveError):
    """A device was asked for that is not there."""


class AddressUnavailable(LenserveError):
    """The server cannot listen where it was told to."""


class InvalidRequest(LenserveError):
    """The request is wrong in a way that its sender can mend."""


class ImageError(InvalidRequest):
    """One image cannot be used; its neighbours can."""


class EmptyImage(ImageError):
    """There are no bytes, or no pixels."""


class ImageTooLarge(ImageError):
    """More bytes or more pixels than the limit."""


class UndecodableImage(ImageError):
    """Truncated, corrupt, or no image at all."""


class InvalidPixels(ImageError):
    """Raw pixels whose shape, type or number of bytes do not fit together."""


class InvalidTensor(InvalidRequest):
    """A tensor's name, shape, datatype or number of bytes is not what the model takes."""


class Unsupported(InvalidRequest):
    """The protocol has it, this server does not, or not as it was started."""


class UnknownRegion(InvalidRequest):
    """No shared memory of that name was registered."""


class RegionExists(InvalidRequest):
    """Shared memory of that name was registered already."""


class Unauthenticated(LenserveError):
    """There is no token, or a wrong one."""


class PermissionDenied(LenserveError):
    """The token is good, but not for this model."""


class UnknownModel(LenserveError):
    """The repository has no such model, version or alias."""


class ModelUnavailable(LenserveError):
    """The model is known, but is loading, draining, refused or broken."""


class Overloaded(LenserveError):
    """As much work as allowed is already waiting; this was refused at once."""


class DeadlineExceeded(LenserveError):
    """The caller's deadline passed before the work began, and it was not done."""


class EngineError(LenserveError):
    """The network itself failed on valid input."""


class OutOfMemory(EngineError):
    """The device has too little free memory for this network or this batch."""
