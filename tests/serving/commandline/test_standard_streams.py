"""Programs whose standard streams are closed, or whose terminal cannot show every character."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[3]

PROGRAM = '''
import os, socket, subprocess, sys
from serving.commandline import Command, print_line, print_table, run_commands, stderr
from rich.table import Table
from rich.tree import Tree

class Show(Command):
    """Show “every” kind of output: é — █."""
    def run(self):
        with socket.socket() as first:
            assert first.fileno() > 2, first
        assert sys.stdin.read() == ""
        child = "import os; [os.fstat(each) for each in range(3)]"
        assert subprocess.run([sys.executable, "-c", child]).returncode == 0  # it inherits them
        stderr.print("progress █ \\udcff")
        table = Table("ä", "█")
        table.add_row("日本", "≤ 1")
        tree = Tree("é")
        tree.add("█")
        print_table(table)
        print_table(tree)
        stderr.print("failed: no model :b:", markup=False)
        print_line("label é █ 日本 \\udcff")
        return 0

sys.exit(run_commands("program", "“Shows” é.", {"show": Show}, sys.argv[1:]))
'''


class Run(Protocol):
    """Runs the program with shell redirections and variables."""

    def __call__(
        self, *arguments: str, redirections: str = "", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Return what it has written."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Write the program."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")

    def run_program(
        *arguments: str, redirections: str = "", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        return _run(program, *arguments, redirections=redirections, **environment)

    return run_program


def _run(
    program: Path, *arguments: str, redirections: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = f'exec "$0" "$@" {redirections}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, str(program), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_terminal_that_is_not_utf8_shows_escapes(run: Run, environment: dict[str, str]) -> None:
    """Results, tables, progress, help and errors."""
    shown = run("show", **environment)
    assert shown.returncode == 0, shown.stderr
    assert b"\\u65e5\\u672c" in shown.stdout
    assert b"progress" in shown.stderr
    assert b"no model :b:" in shown.stderr  # not an emoji

    for arguments, code in ((["show", "--help"], 0), (["show", "é█"], 2)):
        done = run(*arguments, **environment)
        assert done.returncode == code, done.stderr
        assert b"UnicodeEncodeError" not in done.stderr


@pytest.mark.parametrize("redirections", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_are_replaced(run: Run, redirections: str) -> None:
    """No socket takes their numbers, and results come as usual."""
    done = run("show", redirections=redirections)
    assert (done.returncode, b"label" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("redirections", [">&-", "<&- >&-"])
def test_results_for_a_closed_stdout_are_an_error(run: Run, redirections: str) -> None:
    """As with `ls >&-`: success would mean that they were written."""
    done = run("show", redirections=redirections)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"program: the result cannot be written to stdout") or (
        done.stderr.splitlines()[-1].startswith(b"program show: the result cannot be written to stdout")
    )


def test_with_all_streams_closed_the_exit_code_remains(run: Run) -> None:
    """Nothing else can be told."""
    assert run("show", redirections="<&- >&- 2>&-").returncode == 1
    assert run("show", "--colour", redirections="<&- >&- 2>&-").returncode == 2
