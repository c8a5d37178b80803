"""Bearer tokens, and the models that each one allows. Independent of RPC libraries.

Token files hold SHA-256 digests. Tokens are random and long, so a slow hash for passwords is not needed.
"""

import hashlib
import hmac
import itertools
import logging
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import PermissionDenied, Unauthenticated, UsageError
from serving.limited_files import read_limited, why_unreadable
from serving.text_files import decode_text

EVERY_MODEL = "*"

_HASH = "sha256:"
_HEX = re.compile(r"[0-9a-f]{64}")
_FOUND_BY_BYTES = 8  # of a digest

_log = logging.getLogger(__name__)


class _TokenFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tokens: dict[str, list[str]]


@dataclass(slots=True)
class Grant:
    """What a call may do: that of its token. It follows the token file, also while the call runs."""

    models: frozenset[str]  # `EVERY_MODEL` among them allows all
    owner: str  # tells tokens apart, without revealing them; empty: the call has no token
    is_withdrawn: bool = False

    def allows(self, model: str) -> bool:
        """Whether the call may name a model."""
        return model in self.models or EVERY_MODEL in self.models

    def check(self, model: str) -> None:
        """Check that the call may name a model; the empty name stands for none.

        Raises:
            Unauthenticated: the call has no token, or its token is no longer valid.
            PermissionDenied: the token does not allow this model.
        """
        if not model or self.allows(model):
            return
        if not self.owner:
            raise Unauthenticated(
                f"model {model!r} needs a bearer token: send the metadata `authorization: Bearer TOKEN`"
            )
        if self.is_withdrawn:
            raise Unauthenticated("the bearer token is no longer valid: reconnect with another one")
        raise PermissionDenied(f"the bearer token does not allow model {model!r}")


NO_TOKEN = Grant(frozenset(), "")


class Tokens:
    """Known tokens, as digests."""

    def __init__(self, tokens: Mapping[str, list[str]]) -> None:
        """Store the models of each token; a token is plain, or `hash_token` of it.

        Raises:
            UsageError: a hash is invalid.
        """
        # Found by a part of the digest, then compared whole in constant time.
        self._grants: dict[bytes, list[tuple[bytes, Grant]]] = {}
        for token, models in tokens.items():
            digest = _digest_of_entry(token)
            grant = Grant(frozenset(models), digest.hex())
            self._grants.setdefault(digest[:_FOUND_BY_BYTES], []).append((digest, grant))

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Read a TOML file: [tokens], "sha256:HEX" = ["model", ...] or ["*"]. Plain tokens are logged.

        Raises:
            UsageError: the file cannot be read or has the wrong form.
        """
        try:
            tokens = _TokenFile.model_validate(tomllib.loads(decode_text(read_limited(path)))).tokens
        except OSError as error:
            raise UsageError(f"token file {path} cannot be read: {why_unreadable(error)}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"token file {path} is not valid TOML: {error}") from error
        except RecursionError as error:
            raise UsageError(f"token file {path} is nested too deeply: remove brackets") from error
        except ValidationError as error:
            raise UsageError(
                f'token file {path} has the wrong form: use [tokens] with lines such as "TOKEN" = ["MODEL"]'
            ) from error
        try:
            read = cls(tokens)
        except UsageError as error:
            raise UsageError(f"token file {path}: {error}") from error
        plain = sum(not token.startswith(_HASH) for token in tokens)
        if plain:
            reason = f"{plain} of {len(tokens)} tokens are not hashed: see `lenserve tokens hash`"
            _log.warning("plain_tokens", extra={"file": str(path), "reason": reason})
        return read

    def replace(self, other: "Tokens") -> None:
        """Take the tokens of another object instead, also for the next messages of streams that run."""
        old = {grant.owner: grant for _, grant in self._all()}
        for place, entries in other._grants.items():  # noqa: SLF001 - of the same class
            # Running calls hold the old objects.
            kept = [(digest, old.pop(grant.owner, grant), grant.models) for digest, grant in entries]
            for _, grant, models in kept:
                grant.models = models
            other._grants[place] = [(digest, grant) for digest, grant, _ in kept]  # noqa: SLF001
        for withdrawn in old.values():
            withdrawn.models, withdrawn.is_withdrawn = frozenset(), True
        self._grants = other._grants  # noqa: SLF001

    def _all(self) -> Iterator[tuple[bytes, Grant]]:
        return itertools.chain.from_iterable(self._grants.values())

    def grant(self, authorization: str) -> Grant:
        """Return what a call may do.

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
        digest = _digest(token.strip())
        for known, grant in self._grants.get(digest[:_FOUND_BY_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return grant
        raise Unauthenticated("the bearer token is unknown")

    def grant_to_probe(self, authorization: str) -> Grant:
        """Like `grant`, but a probe without a known token may do what needs none."""
        try:
            return self.grant(authorization)
        except Unauthenticated:
            return NO_TOKEN


def hash_token(token: str) -> str:
    """Return what stands for a token in a token file."""
    return _HASH + _digest(token).hex()


def _digest_of_entry(entry: str) -> bytes:
    if not entry.startswith(_HASH):
        return _digest(entry)
    digits = entry.removeprefix(_HASH).lower()
    if not _HEX.fullmatch(digits):
        raise UsageError(
            f"the hash of a token has {len(digits)} characters, expected 64 hexadecimal digits: make it with "
            "`lenserve tokens hash`"
        )
    return bytes.fromhex(digits)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
