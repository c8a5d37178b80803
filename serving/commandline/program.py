"""Runs the command named by the arguments. An expected failure is one line on stderr and an exit code.

Independent of particular commands.
"""

import os
import re
from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pkgutil import resolve_name
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_settings import CliApp, CliPositionalArg, CliSettingsSource, SettingsError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving import __version__
from serving.commandline.command import ENV_PREFIX, Command, encode_word
from serving.commandline.output import OutputFailed, discard_output, print_line, stderr
from serving.commandline.standard_streams import repair_standard_streams
from serving.errors import LenserveError, UsageError
from serving.validation_errors import Problem, known_keys, nearest, problems

DONE = 0
FAILED = 1
WRONG_USAGE = 2
_MOST_HINTS = 3  # options in one "did you mean"
_POSITIONAL = get_args(CliPositionalArg[str])[
    1
]  # in the metadata of a field without a name on the command line

# Type name -> placeholder in --help.
_METAVARS = {"Path": "PATH", "str": "TEXT", "int": "INTEGER", "float": "NUMBER"}

# A command, or MODULE:CLASS of one whose imports only this command needs.
Reference = type[Command] | str
Commands = Mapping[str, Reference | Mapping[str, Reference]]


def run_commands(program: str, summary: str, commands: Commands, argv: Sequence[str]) -> int:
    """Run the command named by argv and return its exit code."""
    repair_standard_streams()
    name, rest = program, list(argv)
    command: Reference | Commands = commands
    while isinstance(command, Mapping):
        if rest and rest[0] in command:
            name, command = f"{name} {rest[0]}", command[rest.pop(0)]
            summary = ""  # the program's, not a group's
            continue
        if rest[:1] in (["-h"], ["--help"]):
            _print_commands(Console(highlight=False, soft_wrap=True, emoji=False), name, summary, command)
            return DONE
        if rest == ["--version"]:
            print_line(f"{name} {__version__}")
            return DONE
        _print_commands(stderr, name, summary, command)
        stderr.print(f"{name}: {_describe_no_command(rest, command)}", markup=False)
        return WRONG_USAGE
    return _run_command(name, resolve(command), rest)


def resolve(command: Reference) -> type[Command]:
    """Return the class of a command, and import it if it is named."""
    found: type[Command] = resolve_name(command) if isinstance(command, str) else command
    return found


def _run_command(name: str, command: type[Command], argv: list[str]) -> int:
    # With exit_on_error, argparse would print the whole usage before the line about a wrong option.
    command.model_config["cli_prog_name"] = name
    source: CliSettingsSource[Any] = CliSettingsSource(
        command,
        cli_exit_on_error=False,
        formatter_class=_Help,
        parse_args_method=partial(_parse_words, lists=_lists_of_words(command)),
    )
    if command.example:
        source.root_parser.epilog = f"example:\n  {command.example}"
    try:
        return CliApp.run(command, cli_args=argv, cli_settings_source=source).run()
    except ValidationError as error:
        for problem in problems(error, command):
            stderr.print(f"{name}: {_describe(problem, command, argv)}", markup=False)
        return WRONG_USAGE
    except (UsageError, SettingsError) as error:
        stderr.print(f"{name}: {_describe_usage(str(error), command, argv)}", markup=False)
        return WRONG_USAGE
    except LenserveError as error:
        stderr.print(f"{name}: {error}", markup=False)
        return FAILED
    except (BrokenPipeError, OutputFailed) as error:
        discard_output()
        if isinstance(error, OutputFailed):
            stderr.print(f"{name}: {error}", markup=False)
        return FAILED  # silently if the reader has closed stdout
    except KeyboardInterrupt:
        return 128 + 2


def _positional(command: type[Command]) -> list[str]:
    return [name for name, field in command.model_fields.items() if _POSITIONAL in field.metadata]


def _lists_of_words(command: type[Command]) -> list[str]:
    """Return the fields that take any number of words, such as files."""
    return [
        name for name in _positional(command) if get_origin(command.model_fields[name].annotation) is list
    ]


def _parse_words(parser: ArgumentParser, args: Sequence[str], *, lists: Sequence[str]) -> Namespace:
    """Parse, and keep words of lists whole: pydantic-settings splits `a,b.png` and takes `7` for a number."""
    found = parser.parse_args(args)
    for name in lists:
        words = getattr(found, name, None)
        if isinstance(words, list):
            setattr(found, name, list(map(encode_word, words)))
    return found


def _describe_no_command(rest: Sequence[str], commands: Commands) -> str:
    if not rest:
        return "a command is missing"
    if rest[0].startswith("-"):
        return f"unknown option {rest[0]}"
    return f"unknown command {rest[0]!r}{_did_you_mean(nearest(rest[0], list(commands)))}"


def _did_you_mean(near: str) -> str:
    return f": did you mean {near}?" if near else ""


def _options_like(unknown: str, command: type[Command]) -> str:
    """Return the options that were probably meant: one spelt alike, or those with its words; or ""."""
    name = unknown.replace("-", "_")
    known = [key for key in known_keys(command) if key not in _positional(command)]
    if near := nearest(name, known):
        return _option(near)
    words = set(name.split("_"))
    alike = [key for key in known if words <= set(key.split("_")) or key.startswith(name)]
    return " or ".join(map(_option, alike[:_MOST_HINTS]))


def _describe_usage(message: str, command: type[Command], argv: Sequence[str]) -> str:
    """Reword a message of argparse or pydantic-settings."""
    message = message.removeprefix("error parsing CLI: ")
    if unknown := re.match(r"unrecognized arguments: --([^\s=]+)", message):
        return _describe_unknown(unknown[1], command)
    if missing := re.match(r"the following arguments are required: (.+)", message):
        *others, last = missing[1].split(", ")
        needed = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"{needed} required" + (f", for example: {command.example}" if command.example else "")
    if no_value := re.match(r"argument (--\S+): expected (?:one|at least one) argument", message):
        following = next((after for word, after in pairwise(argv) if word == no_value[1]), "")
        remedy = f": write {no_value[1]}={following}" if re.match(r"-[\d.]", following) else ""
        return f"{no_value[1]} needs a value{remedy}"
    if value := re.match(r'error parsing value for field "(\w+)" from source "(Env|Cli)', message):
        return _describe_value(value[1], of_variable=value[2] == "Env")
    if unexpected := re.match(r"unrecognized arguments: (.+)", message):
        return _describe_unexpected(unexpected[1], command.explain_arguments(argv))
    return message


def _describe_unknown(option: str, command: type[Command]) -> str:
    if option not in _positional(command):
        return f"unknown option --{option}{_did_you_mean(_options_like(option, command))}"
    example = f", for example: {command.example}" if command.example else ""
    return f"unknown option --{option}: write {option.upper()} alone{example}"


def _describe_value(field: str, *, of_variable: bool) -> str:
    if of_variable:
        return f'{_variable(field)}: must be a JSON list such as [1,8] or ["a","b"]'
    return f"{_option(field)}: must be values separated by commas, such as 1,8 or a,b"


def _describe_unexpected(words: str, meant: str) -> str:
    if not meant and re.fullmatch(r"[-\d ]*\.[-\d. ]*", words):
        meant = "separate the values of an option by commas"
    return f"unexpected argument{'s' if ' ' in words else ''} {words}" + (f": {meant}" if meant else "")


def _describe(problem: Problem, command: type[Command], argv: Sequence[str]) -> str:
    if not problem.key:  # options contradict each other
        return problem.text
    name = problem.key.partition("[")[0]
    if problem.kind == "missing":
        return f"{_option(name)} is required (or {_variable(name)})"
    if problem.kind == "unknown":
        return f"unknown option {_option(name)}"
    if name in _positional(command):
        return f"{name.upper()}: {problem.text}"
    given = any(word.partition("=")[0] == _option(name) for word in argv)
    where = _variable(name) if _variable(name) in os.environ and not given else _option(name)
    return f"{where}: {problem.text}"


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper()


def _print_commands(console: Console, name: str, summary: str, commands: Commands) -> None:
    described = dict(_each_command(commands))
    table = Table(box=None, show_header=False, padding=(0, 2))
    for command_name, command in described.items():
        table.add_row(command_name, escape((command.__doc__ or "").splitlines()[0]))
    console.print(f"usage: {name} COMMAND [OPTIONS]\n", markup=False)
    if summary:
        console.print(f"{summary}\n", markup=False)
    console.print(table)
    if example := next(iter(described.values())).example:
        console.print(f"\nexample:\n  {example}", markup=False)
    console.print(f"\n`{name} COMMAND --help` lists the options of a command.\n", markup=False)


def _each_command(commands: Commands, prefix: str = "") -> Iterator[tuple[str, type[Command]]]:
    for name, command in commands.items():
        if isinstance(command, Mapping):
            yield from _each_command(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", resolve(command)


class _Help(RawDescriptionHelpFormatter):
    """Shows placeholders in capitals, and hides missing defaults."""

    def _metavar_formatter(self, action: Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        if isinstance(action.metavar, str):
            listed = re.fullmatch(r"list\[(.+)\]", action.metavar)
            each = listed[1] if listed else action.metavar
            action.metavar = _METAVARS.get(each, each) + (",..." if listed else "")
        return super()._metavar_formatter(action, default_metavar)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action).removesuffix(" (default: None)").removesuffix(" (default: [])")
        return text.replace("(default: False)", "(default: off)").replace("(default: True)", "(default: on)")
