"""Bearer tokens: who may use which model. Knows no RPC library."""

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import PermissionDenied, Unauthenticated, UsageError

EVERY_MODEL = "*"


class _TokenFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tokens: dict[str, list[str]]


class Tokens:
    """Known tokens. A class because it keeps only digests: comparing those leaks no timing of the token."""

    def __init__(self, tokens: Mapping[str, list[str]]) -> None:
        self._models = {_digest(token): frozenset(models) for token, models in tokens.items()}

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Read a TOML file: [tokens], "token" = ["model", ...] or ["*"].

        Raises:
            UsageError: it cannot be read, or says something else.
        """
        try:
            return cls(_TokenFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).tokens)
        except OSError as error:
            raise UsageError(f"token file {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"token file {path} is not TOML: {error}") from error
        except ValidationError as error:
            raise UsageError(f"token file {path}: expected [tokens] with lists of model names") from error

    def check(self, authorization: str, model: str) -> None:
        """Let a call pass.

        Args:
            authorization: the header of that name, `Bearer TOKEN`; empty where there is none.
            model: which model the call is about; empty where it is about none.

        Raises:
            Unauthenticated, PermissionDenied: it may not.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("this server wants the metadata `authorization: Bearer TOKEN`")
        models = self._models.get(_digest(token.strip()))
        if models is None:
            raise Unauthenticated("the token is not known")
        if model and model not in models and EVERY_MODEL not in models:
            raise PermissionDenied(f"the token is not for model {model!r}")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
