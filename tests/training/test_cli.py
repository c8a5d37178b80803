"""The command line, as people and programs use it: options, exit codes, one JSON object, signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import CliApp

from serving.commandline import Command
from training.cli import Evaluate, FindRate, Layers, Recipes, Run, Verify, main
from training.recipe import resolve, shipped_names

PROGRAM = (sys.executable, "-m", "training")


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The real program in a process of its own."""
    return subprocess.Popen(
        (*PROGRAM, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def stop_when(process: subprocess.Popen[str], said: str) -> tuple[str, str]:
    """Send SIGTERM at the first line of stderr with this beginning; return stdout and the rest of stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(said):
            process.send_signal(signal.SIGTERM)
            break
    return process.communicate(timeout=60)


def test_sigterm_saves_and_resume_publishes_once(tmp_path: Path) -> None:
    """Stopped in training, then in export, then not at all: two clear lines, and one version at the end."""
    options = (
        "--repository",
        str(tmp_path / "repository"),
        "--run-dir",
        str(tmp_path / "run"),
        "--json",
        "--resume",
    )
    longer = ("--set", "training.epochs=40", "--set", "training.patience=40", "--set", "network.dropout=0.2")

    stdout, stderr = stop_when(training := start("run", "lenet5-fake", *options, *longer), "epoch   2")
    assert (training.returncode, stdout) == (1, "")
    assert "stopped by SIGTERM: saved in epoch" in stderr
    assert "--resume" in stderr.splitlines()[-1]

    stdout, stderr = stop_when(
        exporting := start("run", "lenet5-fake", *options, *longer), "export and proof"
    )
    assert (exporting.returncode, stdout) == (1, "")
    assert "stopped by SIGTERM: training is finished and saved" in stderr
    assert not list((tmp_path / "repository").glob("*/*"))

    last = start("run", "lenet5-fake", *options, *longer)
    stdout, stderr = last.communicate(timeout=60)
    assert last.returncode == 0
    assert "epoch" not in stderr, "training was finished and is not done again"
    (line,) = stdout.splitlines()
    result = json.loads(line)
    assert set(result) == {"model", "version", "path", "verdict", "gate", "metrics", "seconds"}
    assert (result["model"], result["version"], result["verdict"]) == ("lenet5-fake", 1, "published")
    assert result["gate"] == "promote"
    assert (Path(result["path"]) / "manifest.json").is_file()


def test_options_come_from_the_environment_too(tmp_path: Path) -> None:
    """Every option is LENSERVE_...; a refused version ends in a JSON line, a clear error and exit code 1."""
    process = start(
        "run",
        "lenet5-fake",
        LENSERVE_REPOSITORY=str(tmp_path / "repository"),
        LENSERVE_RUN_DIR=str(tmp_path / "run"),
        LENSERVE_NAME="pattern",
        LENSERVE_JSON="true",
        LENSERVE_SET="training.epochs=1,gates.max_ece=1e-9",
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    result = json.loads(stdout)
    assert (result["model"], result["version"], result["path"], result["verdict"]) == (
        "pattern",
        None,
        None,
        "refused",
    )
    assert "1 of 7 checks failed: test calibration error" in stderr.splitlines()[-1]
    assert str(tmp_path / "run" / "report") in stderr
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing"),
        (["rnu"], "unknown command 'rnu'"),
        (["run"], "lenserve-train run: RECIPE is required"),
        (["run", "lenet5-digit"], "did you mean lenet5-digits?"),
        (["run", "lenet5-fake", "--set", "training.epoch=1"], "did you mean 'training.epochs'?"),
        (["run", "lenet5-fake", "--set", "training.epochs=1", "--set", "training.seed=-1"], "training.seed"),
        (["run", "lenet5-fake", "--device", "tpu"], "invalid --device 'tpu': use auto, cpu, cuda or cuda:N"),
        (["run", "lenet5-fake", "--name", "../up"], "--name: must be 1 to 128 letters"),
        (
            ["run", "lenet5-fake", "--record", "--set", "training.epochs=1"],
            "no --set except network.weights=FILE",
        ),
        (["evaluate", "."], "is not a bundle"),
        (["layers", "lenet"], "networks are lenet5, conv2, mlp, alexnet, allconv, pneumonia, fast"),
        (
            ["layers", "lenet5", "--set", "network.maps=[1]"],
            "network.maps has 1 size, but the network has 2",
        ),
        (["layers", "alexnet", "--set", "network.activation=rleu"], "network.activation"),
        (["run", "lenet5-fake", "--log", "wandb"], "--log: must be tensorboard or mlflow, got 'wandb'"),
        (
            ["run", "lenet5-fake", "--kernels", "slow"],
            "--kernels: must be fast or reproducible, got 'slow'",
        ),
        (["find-rate", "lenet5-fake", "--steps", "1"], "--steps: must be at least 20, got 1"),
        (["find-rate", "lenet5-fake", "--kernels", "slow"], "--kernels"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No traceback, nothing on stdout, nothing written."""
    monkeypatch.chdir(tmp_path)
    code: str | int | None
    try:
        code = main(arguments)
    except SystemExit as left:  # argparse exits
        code = left.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [Evaluate, FindRate, Layers, Recipes, Run, Verify])
def test_every_command_has_an_example_that_it_accepts(command: type[Command]) -> None:
    """--help ends in it."""
    program, _, *options = shlex.split(command.example)
    assert program == "lenserve-train"
    assert isinstance(CliApp.run(command, cli_args=options), command)


def test_missing_data_are_a_failure_of_the_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit code 1, and the names of the missing files."""
    options = ["--data-root", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    assert main(["run", "lenet5-mnist", *options]) == 1
    assert "train-images-idx3-ubyte[.gz]" in capsys.readouterr().err


def test_recipes_as_json_and_without_torch() -> None:
    """One object with every recipe; torch is not loaded for it, so it is quick."""
    program = (
        "import sys; from training.cli import main; code = main(['recipes', '--json']); "
        "sys.exit(code or ('torch' in sys.modules) or ('onnxruntime' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    recipes = {recipe["name"]: recipe for recipe in json.loads(line)["recipes"]}
    assert set(recipes["lenet5-digits"]) == {
        *("name", "summary", "stated", "baseline"),
        *("tuned_on_test", "measured"),
    }
    assert "98.0 %" in recipes["lenet5-digits"]["stated"]


def test_recipes_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table on stdout that names every recipe; nothing is cut or folded where stdout is not a terminal."""
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for name in shipped_names():
        assert re.search(rf"^ *{name} +{re.escape(resolve(name).summary)}", shown, re.MULTILINE)


def test_layers_of_a_recipe_as_json_and_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """By recipe or by network, with overrides."""
    assert main(["layers", "alexnet-cifar10", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["network"], listed["classes"], listed["parameters"]) == ("alexnet", 10, 2_023_370)
    assert {"name", "kind", "output", "parameters", "frozen", "receptive_field", "arithmetic"} == set(
        listed["layers"][0]
    )
    assert main(["layers", "conv2", "--set", "network.hidden=[7]", "--classes", "3"]) == 0
    shown = capsys.readouterr().out
    assert "trunk.dense1" in shown
    assert "3 classes" in shown


def test_find_rate_draws_and_suggests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plot, one JSON line, and an option to copy from stderr."""
    picture = tmp_path / "rate.png"
    assert main(["find-rate", "lenet5-fake", "--steps", "40", "--picture", str(picture), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert len(found["rates"]) == len(found["losses"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--set training.learning_rate=" in captured.err
