"""`lenserve models import` as an operator runs it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from serving.bundle import Repository
from serving.bundle.operations import KEPT, history
from serving.cli import main
from tests.colours import write_colours
from tests.serving.importing import foreign_files as files


def import_of(path: Path, repository: Repository) -> list[str]:
    """Arguments that import a file."""
    return ["models", "import", str(path), "--name", "foreign", "--repository", str(repository.root)]


def test_what_was_read_and_assumed_is_said(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The version alone is on stdout, for scripts; what was read, assumed and checked is on stderr."""
    path = files.plain(tmp_path / "plain.onnx", batch=1)
    normalization = ["--mean", "123.7,116.8,103.9", "--std", "58.4,57.1,57.4", "--pixels", "0-255"]
    code = main([*import_of(path, repository), "--labels", str(labels), *normalization])
    printed = capsys.readouterr()
    assert code == 0
    assert printed.out == f"published {repository.root / 'foreign' / '1'}\n"
    assert [line.split()[0] for line in printed.err.splitlines()] == [
        *("read", "input", "pixels", "output", "embedding", "labels", "assumed", "checked", "measured"),
        *("served", "next"),
    ]
    assert (
        "pixels    RGB in 0..1, with mean 0.4851,0.458,0.4075 and std 0.229,0.2239,0.2251\n"
        "output    'logits': logits of 5 classes\n"
        "embedding 'features': 8 values, which the last layer gets\n"
        f"labels    5: class 0, class 1, class 2, class 3, class 4 (--labels {labels})\n"
    ) in printed.err
    assert "measured  nothing, and not calibrated: --images names labelled images for both\n" in printed.err
    assert printed.err.endswith(
        "served    is version 1, the first one of foreign\n"
        f"next      `lenserve serve --repository {repository.root}`, then "
        "`lenserve classify IMAGE --model foreign`\n"
    )
    assert "assumed   --fit stretch --interpolation bilinear: the file does not say" in printed.err
    assert "batches: made dynamic" in printed.err
    imported = repository.read("foreign", 1).manifest.provenance.imported
    assert imported is not None
    assert imported.mean == pytest.approx((123.7 / 255, 116.8 / 255, 103.9 / 255))


def test_an_import_replaces_no_version_that_is_served(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be worse: `stable` is made to name the served version, and the command to promote is printed."""
    path = files.plain(tmp_path / "plain.onnx", batch=1)
    command = [*import_of(path, repository), "--labels", str(labels), "--mean", "0", "--std", "1"]
    assert main(command) == 0
    assert "promote" not in capsys.readouterr().err
    assert repository.aliases("foreign") == {}
    for version in (2, 3):
        assert main(command) == 0
        assert (
            f"served    is version 1, which the alias 'stable' names, until `lenserve models promote "
            f"foreign@{version} --repository {repository.root}`\n"
        ) in capsys.readouterr().err
    assert repository.aliases("foreign") == {"stable": 1}
    assert [(change.version, change.reason) for change in history(repository, "foreign")] == [(1, KEPT)]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["served"]) == (4, 1)


def test_an_import_keeps_no_version_that_servers_cannot_load(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stable` would name it, and a server that starts would answer with the newest: the import."""
    path = files.plain(tmp_path / "plain.onnx", batch=1)
    command = [*import_of(path, repository), "--labels", str(labels), "--mean", "0", "--std", "1"]
    for version in (1, 2):
        repository.publish("foreign", partial(write_colours, rotate=0, lie=version == 2))
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "nothing is published: version 2 of model 'foreign'" in message
    assert "`lenserve models promote foreign@VERSION`, then import again" in message
    assert repository.versions("foreign") == [1, 2]
    assert repository.aliases("foreign") == {}


def test_an_import_that_fails_sets_no_alias(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing has changed."""
    path = files.plain(tmp_path / "plain.onnx", batch=1)
    command = [*import_of(path, repository), "--labels", str(labels)]
    assert main([*command, "--mean", "0", "--std", "1"]) == 0
    assert main([*command, "--mean", "0"]) == 2
    assert "--mean is given alone" in capsys.readouterr().err
    assert repository.aliases("foreign") == {}


def test_many_labels_are_shortened(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first ones and the last one show whether they are in order."""
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {number}\n" for number in range(1000)))
    path = files.write(
        tmp_path / "many.onnx",
        files.layers(),
        files.weights(outputs=1000),
        outputs=[helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", 1000))],
    )
    assert main([*import_of(path, repository), "--labels", str(labels), "--mean", "0", "--std", "1"]) == 0
    assert "labels    1,000: class 0, class 1, class 2, class 3, ..., class 999 (" in capsys.readouterr().err


def test_aliases_that_cannot_be_read_stop_before_anything_is_published(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a version would be published by a command that fails."""
    (repository.root / "foreign").mkdir(parents=True)
    (repository.root / "foreign" / "aliases.json").write_text("[")
    path = files.plain(tmp_path / "plain.onnx")
    assert main([*import_of(path, repository), "--labels", str(labels), "--mean", "0", "--std", "1"]) == 1
    assert "aliases.json" in capsys.readouterr().err
    assert repository.versions("foreign") == []


def test_a_full_disk_publishes_nothing(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """One line, and no part of a version is left. The limit is that of a separate process."""
    path = files.plain(tmp_path / "plain.onnx")
    options = ["--labels", str(labels), "--mean", "0", "--std", "1"]
    program = (
        "import resource, signal, sys\n"
        "from serving.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, *import_of(path, repository), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"lenserve models import: the repository {repository.root} cannot be written: File too large; "
        "make room, correct its permissions, or choose another directory\n"
    )
    assert not list(repository.root.rglob("*"))


def test_geometry_options_reach_the_manifest(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the result is one JSON object for programs."""
    path = files.write(
        tmp_path / "any.onnx", files.layers(), files.weights(), shape=("N", 3, "height", "width")
    )
    normalization = ["--mean", "0", "--std", "1"]
    geometry = ["--size", "24x32", "--fit", "crop", "--crop-fraction", "0.875", "--interpolation", "bicubic"]
    options = ["--labels", str(labels), *normalization, *geometry, "--json"]
    code = main([*import_of(path, repository), *options])
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["geometry"] == {
        "height": 24,
        "width": 32,
        "channels": 3,
        "fit": "crop",
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        "background": 255,
    }
    assert (document["model"], document["version"], document["assumed"]) == ("foreign", 1, [])
    assert (document["served"], document["warnings"]) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--mean 0,x,0", "--mean: must be a number, got 'x'"),
        ("--mean nan", "--mean: must be values separated by commas, such as 1,8 or a,b"),
        ("--size big", "--size: must be a side in pixels such as 224, or HEIGHTxWIDTH, got 'big'"),
        ("--size 0", "--size: must be a side in pixels such as 224, or HEIGHTxWIDTH, got '0'"),
        ("--crop-fraction 2", "--crop-fraction: must be at most 1, got 2"),
        ("--name ../x", "--name: must be 1 to 128 letters"),
        ("--fit zoom", "--fit: must be stretch, crop or pad, got 'zoom'"),
        ("--bgr", "lenserve models import: --mean and --std are needed"),
        ("--no-bgr", "lenserve models import: --mean and --std are needed"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: str, message: str, repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is named, and nothing is published."""
    path = files.plain(tmp_path / "plain.onnx")
    assert main([*import_of(path, repository), *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not repository.root.exists()


def test_a_repository_that_cannot_be_written_is_one_line(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its path leads through a file."""
    path = files.plain(tmp_path / "plain.onnx")
    broken = Repository(path / "repository")
    code = main([*import_of(path, broken), "--labels", str(labels), "--mean", "0", "--std", "1"])
    assert code == 1
    assert capsys.readouterr().err == (
        f"lenserve models import: the repository {broken.root} cannot be written: Not a directory; "
        "make room, correct its permissions, or choose another directory\n"
    )


def test_a_network_that_does_not_look_is_warned_of(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most often, pixels in another range saturate it."""
    constant = {**files.weights(), "dense.weight": np.zeros((files.CLASSES, files.FILTERS), np.float32)}
    path = files.write(tmp_path / "constant.onnx", files.layers(), constant)
    assert main([*import_of(path, repository), "--labels", str(labels), "--mean", "0", "--std", "1"]) == 0
    assert "warning   all generated images get the same probabilities" in capsys.readouterr().err


def test_models_list_and_show_say_what_is_known(
    repository: Repository, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An accuracy that nobody measured is not 0."""
    path = files.plain(tmp_path / "plain.onnx")
    options = ["--labels", str(labels), "--mean", "0", "--std", "1"]
    assert main([*import_of(path, repository), *options]) == 0
    assert main(["models", "list", "--repository", str(repository.root)]) == 0
    assert "not measured" in capsys.readouterr().out
    assert main(["models", "show", "foreign@1", "--repository", str(repository.root)]) == 0
    shown = dict(
        re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines()
    )
    assert shown["imported"] == "plain.onnx"
    assert shown["framework"] == "by hand, ONNX opset 17"
