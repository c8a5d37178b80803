"""A command: its fields are its options, from the command line, the environment and a TOML file."""

import os
import tomllib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from serving.commandline.kubernetes_variables import is_service_address, service_addresses
from serving.errors import UsageError
from serving.limited_files import why_unreadable
from serving.text_files import read_text
from serving.validation_errors import known_keys, nearest

ENV_PREFIX = "LENSERVE_"


_WORD = (
    "\ue000word:"  # begins an encoded word: a character for private use, which no name of a file begins with
)


def encode_word(word: str) -> str:
    """Return a word of the command line in a form that pydantic-settings neither splits nor converts."""
    return _WORD + os.fsencode(word).hex()


def _decode_word(value: object) -> object:
    if isinstance(value, str) and value.startswith(_WORD):
        return os.fsdecode(bytes.fromhex(value.removeprefix(_WORD)))
    return value


class Command(BaseSettings):
    """One command. Its fields are its options; `run` runs it."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_prefix_target="all",  # also for aliases: --json is LENSERVE_JSON
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    example: ClassVar[str] = ""  # for --help

    config: Path | None = Field(default=None, description="TOML file whose keys are these options")

    @field_validator("*", mode="before")
    @classmethod
    def _read_words(cls, value: object, info: ValidationInfo) -> object:
        """Decode words, and refuse "" as a path, which would be "." where a shell variable is not set."""
        if isinstance(value, list):
            value = [_decode_word(each) for each in value]
        takes = cls.model_fields[info.field_name or ""].annotation
        is_empty = value == "" or (isinstance(value, list) and "" in value)
        if is_empty and Path in (takes, *get_args(takes)):
            raise ValueError("must not be empty: name a path, or leave it out")
        return value

    @abstractmethod
    def run(self) -> int:
        """Run the command and return its exit code."""

    @classmethod
    def ignored_variables(cls) -> list[str]:
        """Return the variables of this command that Kubernetes has set, and that are not read."""
        return service_addresses(os.environ, (ENV_PREFIX + field.upper() for field in cls.model_fields))

    @classmethod
    def explain_arguments(cls, argv: Sequence[str]) -> str:  # noqa: ARG003 - for commands that can tell
        """Return what was probably meant by the words after a command, if one is unexpected; or ""."""
        return ""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, TOML file, default: the first that has a value wins."""
        del dotenv_settings, file_secret_settings
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = {
                name: value
                for name, value in env_settings.env_vars.items()
                if not is_service_address(name, value)
            }
        return init_settings, env_settings, _ConfigFile(settings_cls)


class _ConfigFile(PydanticBaseSettingsSource):
    """The TOML file that --config or LENSERVE_CONFIG names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Required by the interface but unused: `__call__` returns all fields at once."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if not path:  # if it is empty, `_no_empty_path` refuses it, and knows where it comes from
            return {}
        try:
            keys = tomllib.loads(read_text(Path(path)))
        except OSError as error:
            raise UsageError(f"--config {path} cannot be read: {why_unreadable(error)}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--config {path} is not TOML: {error}") from error
        except RecursionError as error:
            raise UsageError(f"--config {path} is nested too deeply: remove brackets") from error
        values = {key.replace("-", "_"): value for key, value in keys.items()}  # max-count is max_count
        self._check_keys(values, path)
        return values

    def _check_keys(self, values: Mapping[str, Any], path: Path) -> None:
        known = list(known_keys(self.settings_cls))
        for key in values:
            if key not in known:
                suggestion = nearest(key, known)
                hint = f"did you mean {suggestion!r}?" if suggestion else "remove it"
                raise UsageError(f"--config {path}: unknown key {key!r}; {hint}")
