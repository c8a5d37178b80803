"""Both programs' command line: sources of options, streams, exit codes, messages."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from serving import __version__
from serving.commandline import DONE, FAILED, WRONG_USAGE, Command, Commands, print_line, run_commands
from serving.errors import UnknownModel, UsageError

TRACEBACK = "Traceback"


class Greet(Command):
    """Greet [somebody] politely."""

    example: ClassVar[str] = "program greet --name you"

    name: str = Field(description="who")
    max_count: int = Field(default=1, ge=1, le=9, description="how often")
    loud: bool = Field(default=False, description="shout")
    as_json: bool = Field(default=False, alias="json", description="for machines")
    numbers: list[int] = Field(default=[], description="of people")
    place: Path | None = Field(default=None, description="where")

    @model_validator(mode="after")
    def _is_polite(self) -> "Greet":
        if self.loud and self.max_count > 5:
            raise ValueError("loud and often is impolite")
        return self

    def run(self) -> int:
        """Greet on stdout."""
        print_line(f"{self.name} {self.max_count} {self.loud} {self.as_json}")
        return DONE


class ListFiles(Command):
    """List files."""

    files: CliPositionalArg[list[Path]] = Field(min_length=1, description="their names")

    def run(self) -> int:
        """Print the names."""
        print_line(ascii([str(file) for file in self.files]))
        return DONE


class Copy(Command):
    """Copy a file."""

    example: ClassVar[str] = "program copy a b"

    source: CliPositionalArg[Path] = Field(description="from")
    target: CliPositionalArg[str] = Field(description="to")

    @classmethod
    def explain_arguments(cls, argv: Sequence[str]) -> str:
        """Two files are meant."""
        return "leave out 'to'" if "to" in argv else ""

    def run(self) -> int:
        """Copy nothing."""
        return DONE


class Fail(Command):
    """Fail in one of several ways."""

    how: str = Field(default="work", description="which")

    def run(self) -> int:
        """Raise."""
        failures: dict[str, BaseException] = {
            "work": UnknownModel("there is no model 'cats' [v1]"),
            "usage": UsageError("one of --a and --b is needed"),
            "interrupt": KeyboardInterrupt(),
        }
        raise failures[self.how]


COMMANDS: Commands = {
    "greet": Greet,
    "more": {"greet": f"{__name__}:Greet", "fail": Fail},
    "fail": Fail,
    "copy": Copy,
    "list": ListFiles,
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove LENSERVE_ variables of the developer."""
    for name in [name for name in os.environ if name.startswith("LENSERVE_")]:
        monkeypatch.delenv(name)


def run(*argv: str) -> int:
    """Run the program of this test."""
    return run_commands("program", "A program of two commands.", COMMANDS, argv)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on stderr of a refused command, whose stdout is empty."""
    output, errors = capsys.readouterr()
    assert output == ""
    assert TRACEBACK not in errors
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    return errors.removesuffix("\n")


def config(folder: Path, text: str) -> str:
    """A config file."""
    path = folder / "config.toml"
    path.write_text(text)
    return str(path)


# Precedence


def test_the_command_line_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Command line, environment, TOML, default: each option comes from the first that has it."""
    path = config(tmp_path, 'name = "toml"\nmax_count = 2\nloud = true\n')
    assert run("greet", "--config", path) == DONE
    monkeypatch.setenv("LENSERVE_MAX_COUNT", "3")
    assert run("greet", "--config", path) == DONE
    assert run("greet", "--config", path, "--max-count", "4", "--no-loud") == DONE
    assert run("greet", "--name", "line") == DONE
    assert capsys.readouterr().out.splitlines() == [
        "toml 2 True False",
        "toml 3 True False",
        "toml 4 False False",
        "line 3 False False",
    ]


def test_defaults_apply_where_no_source_has_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Every optional option has a default."""
    assert run("greet", "--name", "you") == DONE
    assert capsys.readouterr().out == "you 1 False False\n"


def test_the_config_file_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--config is an option like any other."""
    monkeypatch.setenv("LENSERVE_CONFIG", config(tmp_path, 'name = "toml"'))
    assert run("greet") == DONE
    assert capsys.readouterr().out == "toml 1 False False\n"


@pytest.mark.parametrize("key", ["max_count", "max-count"])
def test_keys_are_written_as_options_or_as_fields(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option's name can be copied into the file as it is on the command line."""
    assert run("greet", "--config", config(tmp_path, f'name = "toml"\n{key} = 5\n')) == DONE
    assert capsys.readouterr().out == "toml 5 False False\n"


def test_renamed_options_have_the_same_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json, LENSERVE_JSON and `json = true` are one option; a variable JSON is unrelated."""
    assert run("greet", "--name", "you", "--json") == DONE
    assert run("greet", "--name", "you", "--config", config(tmp_path, "json = true")) == DONE
    monkeypatch.setenv("JSON", "true")
    assert run("greet", "--name", "you") == DONE
    monkeypatch.setenv("LENSERVE_JSON", "true")
    assert run("greet", "--name", "you") == DONE
    said = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert said == ["True", "True", "False", "True"]


def test_variables_of_other_commands_are_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several commands share one environment: a variable of another command is not an error."""
    monkeypatch.setenv("LENSERVE_GRPC_PORT", "8001")
    assert run("greet", "--name", "you") == DONE
    assert capsys.readouterr().out == "you 1 False False\n"


def test_words_of_a_list_are_kept_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files may be numbers, and have commas, brackets, quotes and bytes that are not UTF-8."""
    names = ["7", "007", "1e3", "a,b.png", "[x].png", "{y}", 'q"z', "true", "null", " ", "back\\", "\udcff"]
    assert run("list", *names) == DONE
    assert capsys.readouterr().out.rstrip("\n") == ascii(names)


# Wrong usage


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["greet"], "program greet: --name is required (or LENSERVE_NAME)"),
        (["greet", "--name", "x", "--colour", "red"], "program greet: unknown option --colour"),
        (["greet", "--name", "x", "stray"], "program greet: unexpected argument stray"),
        (["greet", "--nam", "x"], "program greet: unknown option --nam: did you mean --name?"),
        (
            ["greet", "--name", "x", "--count", "1"],
            "program greet: unknown option --count: did you mean --max-count?",
        ),
        (
            ["greet", "--name", "x", "--ma", "1"],
            "program greet: unknown option --ma: did you mean --max-count?",
        ),
        (["greet", "--name"], "program greet: --name needs a value"),
        (
            ["greet", "--name", "-0.5,-0.5"],
            "program greet: --name needs a value: write --name=-0.5,-0.5",
        ),
        (
            ["greet", "--name", "0.5", "0.4", "0.3"],
            "program greet: unexpected arguments 0.4 0.3: separate the values of an option by commas",
        ),
        (["more", "greet"], "program more greet: --name is required (or LENSERVE_NAME)"),
        (
            ["greet", "--name", "x", "--max-count", "10"],
            "program greet: --max-count: must be at most 9, got 10",
        ),
        (
            ["greet", "--name", "x", "--loud", "--max-count", "6"],
            "program greet: loud and often is impolite",
        ),
        (["copy"], "program copy: SOURCE and TARGET are required, for example: program copy a b"),
        (["copy", "a"], "program copy: TARGET is required, for example: program copy a b"),
        (["copy", "a", "to", "b"], "program copy: unexpected argument b: leave out 'to'"),
        (["copy", "a", "b", "c"], "program copy: unexpected argument c"),
        (
            ["copy", "a", "--target", "b"],
            "program copy: unknown option --target: write TARGET alone, for example: program copy a b",
        ),
        (["copy", "", "b"], "program copy: SOURCE: must not be empty: name a path, or leave it out"),
        (
            ["greet", "--name", "", "--place", ""],
            "program greet: --place: must not be empty: name a path, or leave it out",
        ),
        (
            ["greet", "--name", "x", "--config", ""],
            "program greet: --config: must not be empty: name a path, or leave it out",
        ),
        (["fail", "--how", "usage"], "program fail: one of --a and --b is needed"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the command's name, the option's name, the value; no page of usage and no traceback."""
    assert run(*argv) == WRONG_USAGE
    assert refusal(capsys) == said


def test_a_wrong_variable_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment is validated like the command line, and the message names the one that was read."""
    monkeypatch.setenv("LENSERVE_MAX_COUNT", "many")
    assert run("greet", "--name", "x") == WRONG_USAGE
    assert "LENSERVE_MAX_COUNT: must be a whole number, got 'many'" in refusal(capsys)
    assert run("greet", "--name", "x", "--max-count=few") == WRONG_USAGE
    assert "--max-count: must be a whole number, got 'few'" in refusal(capsys)


def test_an_empty_variable_for_the_config_file_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As any empty path; a path on the command line comes first."""
    monkeypatch.setenv("LENSERVE_CONFIG", "")
    assert run("greet", "--name", "x") == WRONG_USAGE
    assert refusal(capsys) == (
        "program greet: LENSERVE_CONFIG: must not be empty: name a path, or leave it out"
    )
    assert run("greet", "--config", config(tmp_path, 'name = "toml"')) == DONE


def test_a_variable_that_holds_a_list_says_how_to_write_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lists in the environment are JSON."""
    monkeypatch.setenv("LENSERVE_NUMBERS", "1,2")
    assert run("greet", "--name", "x") == WRONG_USAGE
    assert "LENSERVE_NUMBERS: must be a JSON list such as [1,8]" in refusal(capsys)
    monkeypatch.setenv("LENSERVE_NUMBERS", "[1,2]")
    assert run("greet", "--name", "x") == DONE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\ncolour = "red"\n', "unknown key 'colour'; remove it"),
        ('nam = "x"\n', "unknown key 'nam'; did you mean 'name'?"),
        ('name = "x"\nmax_count = 10\n', "--max-count: must be at most 9, got 10"),
        ("name = \n", "is not TOML"),
        ("name = 'x'\nname = 'y'\n", "is not TOML"),
        ("name = " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_a_wrong_config_file_is_wrong_usage(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown keys, impossible values and bad TOML are named."""
    assert run("greet", "--config", config(tmp_path, text)) == WRONG_USAGE
    assert said in refusal(capsys)


@pytest.mark.parametrize("name", ["missing.toml", ".", "binary.toml"])
def test_an_unreadable_config_file_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, a directory, or not text."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    path = tmp_path / name
    assert run("greet", "--config", str(path)) == WRONG_USAGE
    assert f"--config {path}" in refusal(capsys)


def test_several_errors_are_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its own line, so that all can be corrected at once."""
    assert run("greet", "--max-count", "0") == WRONG_USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert {line.split()[2].rstrip(":") for line in lines} == {"--name", "--max-count"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "program: a command is missing"),
        (["gret"], "program: unknown command 'gret': did you mean greet?"),
        (["more"], "program more: a command is missing"),
        (["more", "gret"], "program more: unknown command 'gret': did you mean greet?"),
        (["--loud"], "program: unknown option --loud"),
    ],
)
def test_no_command_shows_the_commands(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2; stderr lists the commands, then the mistake; stdout stays empty."""
    assert run(*argv) == WRONG_USAGE
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()[-1] == said
    assert "Greet [somebody] politely." in errors


# Help


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("group", [[], ["more"]])
def test_help_on_commands_succeeds(group: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and the list of commands, on stdout."""
    assert run(*group, option) == DONE
    output, errors = capsys.readouterr()
    assert "Greet [somebody] politely." in output
    assert "example:\n  program greet --name you" in output
    assert errors == ""


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stdout; the wheel's own version is checked by `make check`."""
    assert run("--version") == DONE
    assert capsys.readouterr().out == f"program {__version__}\n"


def test_help_on_one_command_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; each option is listed with its description."""
    with pytest.raises(SystemExit) as left:
        run("greet", "--help")
    assert left.value.code == DONE
    output = capsys.readouterr().out
    for word in (
        "usage: program greet",
        "--config",
        "--name",
        "--max-count",
        "--loud",
        "--json",
        "how often",
        "--numbers INTEGER,...",
        "--place PATH",
        "(default: off)",
        "example:\n  program greet --name you",
    ):
        assert word in output
    assert not re.search(r"\b(str|int|list|Path|None|False)\b", output)


# Failures


@pytest.mark.parametrize(("how", "code"), [("work", FAILED), ("usage", WRONG_USAGE), ("interrupt", 130)])
def test_exit_codes(how: str, code: int) -> None:
    """1: the command failed; 2: wrong usage; 130: Ctrl-C, as in shells."""
    assert run("fail", "--how", how) == code


def test_a_failure_is_one_line_with_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a message are not markup."""
    assert run("more", "fail") == FAILED
    assert refusal(capsys) == "program more fail: there is no model 'cats' [v1]"


def test_a_bug_is_not_hidden() -> None:
    """Only expected failures become a line: anything else keeps its traceback."""
    with pytest.raises(KeyError):
        run("fail", "--how", "unforeseen")


# The real streams

PROGRAM = '''
import sys
from serving.commandline import Command, print_line, run_commands, stderr
from serving.errors import UnknownModel

class Count(Command):
    """Count."""
    def run(self):
        stderr.print("progress")
        for number in range(100_000):
            print_line(str(number))
        return 0

class Fail(Command):
    """Fail."""
    def run(self):
        raise UnknownModel("no such model")

sys.exit(run_commands("program", "Counts.", {"count": Count, "fail": Fail}, sys.argv[1:]))
'''


def start(*argv: str) -> "subprocess.Popen[str]":
    """The program above in a fresh interpreter."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("argv", "code"), [(["fail"], 1), (["fail", "--colour"], 2), (["count", "--colour"], 2)]
)
def test_a_real_process_fails_in_one_line(argv: list[str], code: int) -> None:
    """The exit codes reach the shell, stdout is empty, stderr is one line."""
    process = start(*argv)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    assert errors.count("\n") == 1
    assert errors.startswith(f"program {argv[0]}: ")


def test_results_and_progress_use_different_streams() -> None:
    """Stdout has only results."""
    process = start("count")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "progress\n")
    assert output.splitlines() == [str(number) for number in range(100_000)]


def test_a_closed_pipe_ends_the_program_quietly() -> None:
    """As in `lenserve classify ... | head -1`: exit code 1 and no traceback."""
    process = start("count")
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == "progress\n"
    assert process.wait(timeout=60) == FAILED
