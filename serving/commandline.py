"""The manners that `lenserve` and `lenserve-train` share: options, one TOML file, exit codes, clear errors.

Knows no command. Every option of a command is a field of a pydantic-settings class, read from the command
line first, then from the environment (LENSERVE_...), then from the TOML file of --config.
"""

import difflib
import os
import re
import sys
import tomllib
from abc import abstractmethod
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.errors import LenserveError, UsageError

DONE = 0
FAILED = 1
WRONG_USAGE = 2

ENV_PREFIX = "LENSERVE_"

_NEAR = 0.7  # of difflib's ratio: closer, and somebody mistyped it

# stdout belongs to results; progress, logs and errors go here.
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


class Command(BaseSettings):
    """One command: its fields are its options, `run` does it."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_prefix_target="all",  # of aliases too: --json is LENSERVE_JSON
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    config: Path | None = Field(default=None, description="TOML file with any of these options as keys")

    @abstractmethod
    def run(self) -> int:
        """Do the work and return the exit code."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, TOML file: the first that speaks wins."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _ConfigFile(settings_cls)


Commands = Mapping[str, type[Command] | Mapping[str, type[Command]]]


def run_commands(program: str, summary: str, commands: Commands, argv: Sequence[str]) -> int:
    """Run the command that argv names, and turn every expected failure into one line and an exit code."""
    name, rest = program, list(argv)
    command: type[Command] | Commands = commands
    while isinstance(command, Mapping):
        if rest and rest[0] in command:
            name, command = f"{name} {rest[0]}", command[rest.pop(0)]
            continue
        if rest[:1] in (["-h"], ["--help"]):
            _print_commands(Console(highlight=False, soft_wrap=True), name, summary, command)
            return DONE
        if rest == ["--version"]:
            print_line(f"{name} {_version()}")
            return DONE
        _print_commands(stderr, name, summary, command)
        problem = f"there is no command {rest[0]!r}" if rest else "a command is missing"
        stderr.print(f"{name}: {problem}{_meant(rest[0], command) if rest else ''}", markup=False)
        return WRONG_USAGE
    return _run_command(name, command, rest)


def _run_command(name: str, command: type[Command], argv: list[str]) -> int:
    # argparse leaves with 0 after --help, which is the code we want. A wrong option must not exit on error:
    # that prints the usage of every option first and buries the one clear line.
    command.model_config["cli_prog_name"] = name
    source: CliSettingsSource[Any] = CliSettingsSource(
        command, cli_exit_on_error=False, formatter_class=_Help
    )
    try:
        return CliApp.run(command, cli_args=argv, cli_settings_source=source).run()
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            stderr.print(f"{name}: {_describe(problem)}", markup=False)
        return WRONG_USAGE
    except (UsageError, SettingsError) as error:
        stderr.print(f"{name}: {_describe_usage(str(error), command)}", markup=False)
        return WRONG_USAGE
    except LenserveError as error:
        stderr.print(f"{name}: {error}", markup=False)
        return FAILED
    except BrokenPipeError:  # whoever read our stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered would fail at exit
        return FAILED
    except KeyboardInterrupt:
        return 128 + 2


def _version() -> str:
    """Of the installed package; its one place is pyproject.toml."""
    try:
        return metadata.version("lenserve")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _meant(word: str, known: Iterable[str]) -> str:
    """A question with the nearest known word; nothing where none is near."""
    names = {each.strip("-"): each for each in known}
    near = difflib.get_close_matches(word.strip("-"), list(names), n=1, cutoff=_NEAR)
    return f": did you mean {names[near[0]]}?" if near else ""


def _describe_usage(message: str, command: type[Command]) -> str:
    message = message.removeprefix("error parsing CLI: ")
    unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
    if unknown is None:
        return message.replace("unrecognized arguments:", "unexpected argument")
    names = ((field.alias or name).replace("_", "-") for name, field in command.model_fields.items())
    return f"unknown option {unknown[1]}{_meant(unknown[1], [f'--{name}' for name in names])}"


def _describe(problem: Mapping[str, Any]) -> str:
    if not problem["loc"]:  # of the options together; their values would flood the line
        return str(problem["msg"])
    option = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    if problem["type"] == "missing":
        return f"{option} is required (or {ENV_PREFIX}{str(problem['loc'][0]).upper()})"
    if problem["type"] == "extra_forbidden":
        return f"unknown option {option}"
    return f"{option}: {problem['msg']} (got {problem['input']!r})"


def _print_commands(console: Console, name: str, summary: str, commands: Commands) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for command_name, command in commands.items():
        described = (
            " | ".join(command) if isinstance(command, Mapping) else (command.__doc__ or "").splitlines()[0]
        )
        table.add_row(command_name, escape(described))
    console.print(f"usage: {name} COMMAND [OPTIONS]\n\n{summary}\n", markup=False)
    console.print(table)
    console.print(f"\n`{name} COMMAND --help` lists the options of a command.\n", markup=False)


class _Help(RawDescriptionHelpFormatter):
    """Says a default only where there is one."""

    def _expand_help(self, action: Action) -> str:
        return super()._expand_help(action).removesuffix(" (default: None)").removesuffix(" (default: [])")


class _ConfigFile(PydanticBaseSettingsSource):
    """The TOML file that a source of higher priority named as `config`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Part of the interface; this source answers for all fields at once."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            keys = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--config {path} is not TOML: {error}") from error
        return {key.replace("-", "_"): value for key, value in keys.items()}  # max-count is max_count


def print_line(text: str) -> None:
    """One line of result on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
