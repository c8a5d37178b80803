"""Decides whether an error says that a version itself is damaged. Reads no files."""

import errno

from serving.errors import BundleError, UnknownModel
from serving.limited_files import is_unfit

# Of a path that is not what was published. All other errors of a disk may pass, or concern this user alone.
_NOT_AS_PUBLISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


def is_damage(error: BaseException) -> bool:
    """Whether a version is damaged or gone; False if a store or a disk did not answer, which may pass.

    Args:
        error: of reading the version.
    """
    if not isinstance(error, BundleError | UnknownModel):
        return False
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    return cause is None or cause.errno in _NOT_AS_PUBLISHED or is_unfit(cause)
