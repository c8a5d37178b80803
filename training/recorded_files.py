"""Reads the JSON files that a run wrote: a damaged one is an error of one line that names it."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from serving.validation_errors import describe
from training.errors import DamagedFile

_Model = TypeVar("_Model", bound=BaseModel)


def read_recorded(path: Path, model: type[_Model], remedy: str) -> _Model:
    """Read a file and validate it.

    Args:
        path: the file.
        model: what it holds.
        remedy: the last part of the message.

    Raises:
        DamagedFile: the file cannot be read, or does not hold what it should.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}; {remedy}") from error
    except ValidationError as error:
        raise DamagedFile(f"{path} is damaged: {describe(error, model)}; {remedy}") from error
