"""Bearer tokens, and the models that each one allows. Independent of RPC libraries."""

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
    """Known tokens, as digests: the time of a lookup reveals nothing about a token."""

    def __init__(self, tokens: Mapping[str, list[str]]) -> None:
        self._models = {_digest(token): frozenset(models) for token, models in tokens.items()}

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Read a TOML file: [tokens], "token" = ["model", ...] or ["*"].

        Raises:
            UsageError: the file cannot be read or has the wrong form.
        """
        try:
            return cls(_TokenFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).tokens)
        except OSError as error:
            raise UsageError(f"token file {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"token file {path} is not valid TOML: {error}") from error
        except RecursionError as error:
            raise UsageError(f"token file {path} is nested too deeply: remove brackets") from error
        except ValidationError as error:
            raise UsageError(
                f'token file {path} has the wrong form: use [tokens] with lines such as "TOKEN" = ["MODEL"]'
            ) from error

    def models(self, authorization: str) -> frozenset[str]:
        """Return the models that a call may name; `EVERY_MODEL` among them allows all.

        Args:
            authorization: the metadata `authorization`, `Bearer TOKEN`; empty if missing.

        Raises:
            Unauthenticated: the token is missing or unknown.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "the bearer token is missing: send the metadata `authorization: Bearer TOKEN`"
            )
        models = self._models.get(_digest(token.strip()))
        if models is None:
            raise Unauthenticated("the bearer token is unknown")
        return models


def check_model(models: frozenset[str], model: str) -> None:
    """Check that a call may name a model; the empty name stands for none.

    Raises:
        PermissionDenied: the token does not allow this model.
    """
    if model and model not in models and EVERY_MODEL not in models:
        raise PermissionDenied(f"the bearer token does not allow model {model!r}")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
