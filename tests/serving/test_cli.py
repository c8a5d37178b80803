"""The command line in real processes: outputs, exit codes, and one clear line for every error."""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic_settings import CliApp

from serving.bundle import Repository
from serving.cli import COMMANDS
from serving.commandline import resolve
from tests.colours import Publish
from tests.servers import StartServer

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lenserve(tmp_path: Path) -> Run:
    """Run `lenserve` in an empty directory and environment; keyword arguments are environment variables."""

    def run(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("LENSERVE_")}
        return subprocess.run(
            [sys.executable, "-m", "serving.cli", *map(str, arguments)],
            env={**plain, "COLUMNS": "200", "PYTHONPATH": str(ROOT), **environment},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory with a red and a green image, a text file, and a subdirectory with a blue image."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "a.png")
    Image.new("RGB", (9, 9), (0, 255, 0)).save(folder / "b.BMP")
    Image.new("RGB", (9, 9), (0, 0, 255)).save(folder / "more" / "c.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_classify_prints_labels_as_text(
    publish: Publish, start_server: StartServer, lenserve: Run, images: Path
) -> None:
    """File, model, version, and a line for each label with its percentage and a bar."""
    publish()
    server = start_server()

    done = lenserve("classify", "--server", server.grpc, "--model", "colours", "--top-k", 2, images / "a.png")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{images / 'a.png'}  (colours version 1)"
    assert lines[1].split() == ["red", "96.47%", "█" * 19]
    assert lines[2].split() == ["green", "1.77%"]


def test_classify_json_is_one_object_a_line_in_order(
    publish: Publish, start_server: StartServer, lenserve: Run, images: Path
) -> None:
    """A directory is searched recursively, in sorted order; stdout is JSON only."""
    publish()
    server = start_server()

    done = lenserve("classify", "--server", server.grpc, "--model", "colours@1", "--json", images)

    assert (done.returncode, done.stderr) == (0, "")
    lines = _lines(done.stdout)
    files = [images / "a.png", images / "b.BMP", images / "more" / "c.jpg"]
    assert [line["image"] for line in lines] == [str(file) for file in files]
    assert [line["labels"][0]["label"] for line in lines] == ["red", "green", "blue"]
    assert set(lines[0]) == {"image", "model", "version", "labels"}
    assert (lines[0]["model"], lines[0]["version"]) == ("colours", 1)
    assert [set(label) for label in lines[0]["labels"]] == [{"label", "index", "probability"}] * 3


def test_a_file_that_is_not_an_image_is_a_line_with_an_error_and_exit_1(
    publish: Publish, start_server: StartServer, lenserve: Run, images: Path
) -> None:
    """The others are classified; the number of failures is written to stderr."""
    publish()
    server = start_server()
    (images / "broken.png").symlink_to(images / "gone.png")
    arguments = ("classify", "--server", server.grpc, "--model", "colours")

    as_json = lenserve(*arguments, "--json", images / "notes.txt", images)
    as_text = lenserve(*arguments, images / "notes.txt")

    lines = _lines(as_json.stdout)
    assert (as_json.returncode, as_text.returncode) == (1, 1)
    assert lines[0] == {
        "image": str(images / "notes.txt"),
        "error": {
            "code": "INVALID_ARGUMENT",
            "message": "the image cannot be decoded: unknown image format (10 bytes)",
        },
    }
    assert [("error" in line) for line in lines] == [True, False, False, True, False]
    assert "broken.png cannot be read: No such file" in lines[3]["error"]["message"]
    assert as_json.stderr == "2 of 5 images could not be classified\n"
    assert as_text.stderr == "1 of 1 image could not be classified\n"
    assert as_text.stdout.splitlines()[1].startswith("  INVALID_ARGUMENT: the image cannot be decoded")


def test_options_come_from_the_command_line_then_the_environment_then_a_file(
    publish: Publish,
    start_server: StartServer,
    lenserve: Run,
    images: Path,
    tmp_path: Path,
) -> None:
    """Each option has three sources: the command line wins over the environment, that over the file."""
    publish()
    server = start_server()
    config = tmp_path / "lenserve.toml"
    config.write_text(f'model = "colours"\nserver = "{server.grpc}"\ntop_k = 1\njson = true\n')
    classify = ("classify", "--config", config, images / "a.png")

    from_file = lenserve(*classify)
    from_environment = lenserve(*classify, LENSERVE_TOP_K="2", LENSERVE_CONFIG=str(config))
    from_command_line = lenserve(*classify, "--top-k", 3, LENSERVE_TOP_K="2")

    for done, count in ((from_file, 1), (from_environment, 2), (from_command_line, 3)):
        assert (done.returncode, done.stderr) == (0, "")
        assert len(_lines(done.stdout)[0]["labels"]) == count


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        pytest.param(["fly"], {}, "lenserve: unknown command 'fly'", id="command"),
        pytest.param([], {}, "lenserve: a command is missing", id="no-command"),
        pytest.param(["models"], {}, "lenserve models: a command is missing", id="no-subcommand"),
        pytest.param(
            ["serve", "--port", "8001"],
            {},
            "lenserve serve: unknown option --port: did you mean --grpc-port or --http-port?",
            id="option",
        ),
        pytest.param(
            ["serve"],
            {},
            "lenserve serve: the repository repository is not a directory: create it, or set another "
            "--repository",
            id="default",
        ),
        pytest.param(
            ["classify", "photo.jpg"],
            {},
            "lenserve classify: --model is required (or LENSERVE_MODEL)",
            id="required",
        ),
        pytest.param(
            ["serve", "--repository", "none"],
            {},
            "lenserve serve: the repository none is not a directory: create it, or set another --repository",
            id="repository",
        ),
        pytest.param(
            ["serve", "--repository", ".", "--grpc-port", "70000"],
            {},
            "lenserve serve: --grpc-port: must be at most 65535, got 70000",
            id="port",
        ),
        pytest.param(
            ["serve", "--repository", "."],
            {"LENSERVE_DEVICE": "tpu"},
            "lenserve serve: LENSERVE_DEVICE: must be auto, cpu, cuda or cuda:N, got 'tpu'",
            id="device",
        ),
        pytest.param(
            ["serve", "--repository", ".", "--max-images", "9", "--max-pending-images", "8"],
            {},
            "lenserve serve: --max-images 9 exceeds --max-pending-images 8: "
            "lower the first or raise the second",
            id="limits",
        ),
        pytest.param(
            ["serve", "--config", "none.toml"],
            {},
            "lenserve serve: --config none.toml cannot be read: No such file or directory",
            id="config",
        ),
        pytest.param(
            ["classify", "--model", "m", "none.png"],
            {},
            "lenserve classify: none.png: no such file or directory",
            id="file",
        ),
        pytest.param(
            ["models", "list", "--repository", "none"],
            {},
            "lenserve models list: the repository none is not a directory: set another --repository",
            id="list",
        ),
    ],
)
def test_a_wrong_command_line_is_one_clear_line_and_exit_2(
    lenserve: Run, arguments: list[str], environment: dict[str, str], line: str
) -> None:
    """The option and the reason, no traceback, nothing on stdout."""
    done = lenserve(*arguments, **environment)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    told = [each for each in done.stderr.splitlines() if each.startswith("lenserve")]
    assert len(told) == 1
    assert told[0] == line


def test_an_unknown_option_and_an_unknown_key_are_exit_2(lenserve: Run, tmp_path: Path) -> None:
    """An unknown key of a config file is rejected by its name, as an unknown option is."""
    config = tmp_path / "lenserve.toml"
    config.write_text('repository = "."\ncolour = "red"\n')

    option = lenserve("serve", "--repository", ".", "--colour", "red")
    key = lenserve("serve", "--config", config)

    assert (option.returncode, key.returncode) == (2, 2)
    assert "--colour" in option.stderr
    assert key.stderr == f"lenserve serve: --config {config}: unknown key 'colour'; remove it\n"
    assert "Traceback" not in option.stderr + key.stderr


def test_help_lists_every_option_and_succeeds(lenserve: Run) -> None:
    """--help of the program and of a command exits with 0."""
    program = lenserve("--help")
    command = lenserve("serve", "--help")

    assert (program.returncode, command.returncode) == (0, 0)
    assert all(name in program.stdout + program.stderr for name in ("serve", "classify", "models"))
    assert all(option in command.stdout for option in ("--repository", "--max-queue-delay-s", "--token-file"))


def test_a_failed_command_is_one_clear_line_and_exit_1(
    publish: Publish, start_server: StartServer, lenserve: Run, images: Path
) -> None:
    """An unknown model, no server at the address, a port in use, a missing device."""
    publish()
    server = start_server()
    repository = server.event("listening")["repository"]
    port = server.grpc.rpartition(":")[2]
    classify = ("classify", images / "a.png", "--model")
    serve = ("serve", "--repository", repository, "--http-port", 0)

    failures = [
        (lenserve(*classify, "shapes", "--server", server.grpc), "NOT_FOUND: there is no model 'shapes'"),
        (
            lenserve(*classify, "colours", "--server", "127.0.0.1:1", "--timeout-s", 1),
            "UNAVAILABLE: failed to connect",
        ),
        (lenserve(*serve, "--grpc-port", port), f"gRPC cannot listen on 127.0.0.1:{port}"),
        (lenserve(*serve, "--grpc-port", 0, "--device", "cuda:99"), "device cuda:99 was requested, but "),
    ]

    for done, message in failures:
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "Traceback" not in done.stderr
        assert message in done.stderr.splitlines()[-1]


def test_models_list_shows_every_version(publish: Publish, repository: Repository, lenserve: Run) -> None:
    """Newest first, with aliases and accuracy."""
    publish()
    publish(rotate=1)
    repository.set_alias("colours", "stable", 1)

    as_text = lenserve("models", "list", "--repository", repository.root)
    as_json = lenserve("models", "list", "--repository", repository.root, "--json")

    assert (as_text.returncode, as_text.stderr, as_json.returncode, as_json.stderr) == (0, "", 0, "")
    rows = [line.split() for line in as_text.stdout.splitlines()]
    assert rows[0] == ["model", "version", "aliases", "classes", "accuracy", "recipe", "created", "digest"]
    assert rows[1][:3] == ["colours", "2", "3"]
    assert rows[2][:4] == ["colours", "1", "stable", "3"]
    (line,) = _lines(as_json.stdout)
    assert [(row["version"], row["aliases"], row["accuracy"]) for row in line["models"]] == [
        (2, [], 1.0),
        (1, ["stable"], 1.0),
    ]


def test_models_list_truncates_nothing_in_a_pipe(
    publish: Publish, repository: Repository, lenserve: Run
) -> None:
    """Each version is one line, even if the terminal is narrow."""
    publish()
    aliases = [f"an-alias-of-some-length-{number}" for number in range(9)]
    for alias in aliases:
        repository.set_alias("colours", alias, 1)

    done = lenserve("models", "list", "--repository", repository.root, COLUMNS="20")

    _, row = done.stdout.splitlines()
    assert row.startswith("colours  1 ")
    assert ", ".join(aliases) in row
    assert re.search(r" [0-9a-f]{12}$", row)


def test_every_command_has_an_example_that_it_accepts() -> None:
    """--help ends in it."""
    groups = [group for group in COMMANDS.values() if isinstance(group, Mapping)]
    single = [command for command in COMMANDS.values() if not isinstance(command, Mapping)]
    for command in map(resolve, (*single, *(command for group in groups for command in group.values()))):
        program, *arguments = shlex.split(command.example)
        options = arguments[2 if arguments[0] in ("models", "tokens") else 1 :]
        assert program == "lenserve"
        assert isinstance(CliApp.run(command, cli_args=options), command)


def test_a_token_is_hashed_from_stdin(lenserve: Run) -> None:
    """The line belongs into a token file. Without a token there is none."""
    some = lenserve("tokens", "hash", "--model", "digits", "--model", "photos", stdin="abc\n")
    every = lenserve("tokens", "hash", stdin="abc")
    marked = lenserve("tokens", "hash", stdin="\ufeffabc\r\n")  # `type token.txt | lenserve tokens hash`
    none = lenserve("tokens", "hash", stdin="\n")

    digest = hashlib.sha256(b"abc").hexdigest()
    assert some.stdout == f'"sha256:{digest}" = ["digits", "photos"]\n'
    assert every.stdout == marked.stdout == f'"sha256:{digest}" = ["*"]\n'
    assert (none.returncode, none.stdout) == (2, "")
    assert "stdin has no token" in none.stderr


def test_models_list_marks_a_version_that_cannot_be_trusted(
    publish: Publish, repository: Repository, lenserve: Run
) -> None:
    """A changed file has another digest: its row shows an error, and the exit code is 1."""
    bundle = publish()
    bundle.model_file.chmod(0o644)
    bundle.model_file.write_bytes(b"changed")

    as_text = lenserve("models", "list", "--repository", repository.root)
    as_json = lenserve("models", "list", "--repository", repository.root, "--json")

    assert (as_text.returncode, as_json.returncode) == (1, 1)
    assert "cannot be trusted" in as_text.stdout
    assert "model.onnx" in _lines(as_json.stdout)[0]["models"][0]["error"]


def test_models_list_continues_after_a_model_that_cannot_be_read(
    publish: Publish, repository: Repository, lenserve: Run
) -> None:
    """Its versions are listed without aliases, with a row for the error. Overlooked folders follow."""
    publish("a")
    (publish("b").folder.parent / "aliases.json").write_text("{")
    (repository.root / "b" / "v2").mkdir()

    as_text = lenserve("models", "list", "--repository", repository.root)
    as_json = lenserve("models", "list", "--repository", repository.root, "--json")

    assert (as_text.returncode, as_json.returncode) == (1, 1)
    assert "rename it to 2" in as_text.stderr
    rows = [(row["model"], row["version"], "error" in row) for row in _lines(as_json.stdout)[0]["models"]]
    assert rows == [("a", 1, False), ("b", None, True), ("b", 1, False)]


def test_models_list_of_an_empty_repository_says_so(repository: Repository, lenserve: Run) -> None:
    """No rows, a sentence on stderr, and no failure."""
    done = lenserve("models", "list", "--repository", repository.root)

    assert (done.returncode, done.stdout) == (0, "")
    assert "has no models yet" in done.stderr


def test_serve_logs_its_choices_and_stops_on_sigterm_with_exit_0(
    publish: Publish, start_server: StartServer
) -> None:
    """Device and provider with their reason, batching, addresses, readiness; then a graceful stop."""
    publish()
    server = start_server("--max-batch-size", "7")

    device = server.event("device_chosen")
    assert device["device"] in {"cpu", "cuda:0"}
    assert str(device["reason"]).startswith("auto: ")
    assert server.event("batching_chosen")["max_batch_size"] == 7
    assert server.event("ready")["models"] == "colours@1"
    assert server.stop() == 0
    assert [event["event"] for event in server.log[-2:]] == ["stopping", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_logs_text_by_default(publish: Publish, repository: Repository, number: signal.Signals) -> None:
    """Without --log-json events are text; both signals stop the server."""
    publish()
    command = [sys.executable, "-m", "serving.cli", "serve", "--repository", str(repository.root)]
    command += ["--grpc-port", "0", "--http-port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " ready " in line:
                process.send_signal(number)
        assert process.wait(timeout=30) == 0

    text = "".join(lines)
    assert re.search(
        r"INFO +device_chosen device=cpu provider=CPUExecutionProvider reason=\"?requested", text
    )
    assert "Traceback" not in text
    assert " stopped" in lines[-1]


def test_a_check_prints_a_table_or_json_and_returns_1_for_any_problem(
    publish: Publish, repository: Repository, lenserve: Run
) -> None:
    """For people and for pipelines: nothing of the log reaches the terminal."""
    publish("colours")
    command = ("serve", "--repository", repository.root, "--check")
    sound = lenserve(*command)
    assert (sound.returncode, sound.stderr) == (0, "ready: would serve 1 of 1 model\n")
    assert "served, default" in sound.stdout

    publish("colours", lie=True)
    refused = lenserve(*command, "--json")
    assert (refused.returncode, refused.stderr) == (1, "")
    (model,) = json.loads(refused.stdout)["models"]
    assert [(each["version"], each["state"]) for each in model["versions"]] == [(1, "ready"), (2, "refused")]

    alone = lenserve("serve", "--repository", repository.root, "--json")
    assert (alone.returncode, alone.stderr) == (
        2,
        "lenserve serve: --json belongs to --check: add it, or set --log-json for the log\n",
    )
