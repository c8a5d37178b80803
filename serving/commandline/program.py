"""Runs the command that the arguments name. Every expected failure is one line on stderr and an exit code.

Contains no command.
"""

import difflib
import os
import re
import sys
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving import __version__
from serving.commandline.command import ENV_PREFIX, Command
from serving.commandline.output import print_line, stderr
from serving.errors import LenserveError, UsageError

DONE = 0
FAILED = 1
WRONG_USAGE = 2

_NEAR = 0.7  # difflib's ratio from which a word counts as a misspelling of another

Commands = Mapping[str, type[Command] | Mapping[str, type[Command]]]


def run_commands(program: str, summary: str, commands: Commands, argv: Sequence[str]) -> int:
    """Run the command that argv names and return its exit code."""
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
            print_line(f"{name} {__version__}")
            return DONE
        _print_commands(stderr, name, summary, command)
        problem = f"there is no command {rest[0]!r}" if rest else "a command is missing"
        stderr.print(f"{name}: {problem}{_meant(rest[0], command) if rest else ''}", markup=False)
        return WRONG_USAGE
    return _run_command(name, command, rest)


def _run_command(name: str, command: type[Command], argv: list[str]) -> int:
    # argparse exits with 0 after --help, as it should. With exit_on_error, the usage of every option would
    # precede the one line about a wrong option.
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
    except BrokenPipeError:  # the reader of stdout has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # buffered lines would fail at exit
        return FAILED
    except KeyboardInterrupt:
        return 128 + 2


def _meant(word: str, known: Iterable[str]) -> str:
    """Suggest the nearest known word; an empty string where none is near."""
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
    if not problem["loc"]:  # about several options: their values would flood the line
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
    """Omits the default of options that have none."""

    def _expand_help(self, action: Action) -> str:
        return super()._expand_help(action).removesuffix(" (default: None)").removesuffix(" (default: [])")
