"""Full disks, no permission, damaged files and odd names are one line, early, and lose nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.errors import LenserveError
from training.cli import main
from training.errors import RunFolderConflict, WeightsError, WriteError
from training.learning import checkpoint
from training.networks.weights import read_weights
from training.recipe import Recipe
from training.run.job import Job, train_and_evaluate
from training.run.preflight import check_space, check_writable

# In the order in which a run writes them.
WRITTEN = (
    ".recipe.json.tmp",
    ".checkpoint.pt.tmp",
    "model.onnx",
    "metrics.json",
    "report.html",
    ".publishing.json.tmp",
    "golden.npz",
    "manifest.json",
    ".summary.json.tmp",
)
TORCH_WORDS = ("PytorchStreamReader", "invalid load key", "pickle", "zip archive", "Unpickl", "Errno")


@pytest.fixture
def lenient(fake_recipe: Callable[..., Recipe]) -> Recipe:
    """One epoch that is always published."""
    return fake_recipe(
        "training.epochs=1",
        "gates.max_ece=1",
        "gates.min_skill=-1",
        "gates.min_accuracy=0",
        "gates.allow_zero_recall=true",
    )


def test_a_disk_that_is_full_at_any_write_loses_nothing(
    lenient: Recipe, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file in turn meets a full disk: one line names it, and --resume goes on to one version."""
    job = replace(job, resume=True)
    opened = Path.open
    for name in WRITTEN:

        def open_full(path: Path, *options: Any, name: str = name, **more: Any) -> Any:  # noqa: ANN401
            is_full = path.name == name and options[:1] != ("rb",)
            return opened(Path("/dev/full") if is_full else path, *options, **more)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", open_full)
            with pytest.raises(WriteError, match="cannot be written: No space left on device; ") as caught:
                train_and_evaluate(lenient, job)
        assert "\n" not in str(caught.value)
        assert str(job.run_dir) in str(caught.value) or str(job.repository.root) in str(caught.value)
        assert not list(job.run_dir.rglob(".*.tmp"))
    assert train_and_evaluate(lenient, job).verdict == "published"
    assert job.repository.versions(job.model) == [1]
    written = {path.name for path in (job.repository.root / job.model).glob("[!.]*")}
    assert written == {"1", "aliases.json", "aliases.history.jsonl"}


def _in_a_small_disk(script: str, size: str, mounted: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a file system of this size mounted, in a namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare")
    mount = f"mount -t tmpfs -o size={size} none {mounted}"
    command = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, mount], capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small file system")
    return subprocess.run([*command, f"{mount} && {script}"], capture_output=True, text=True, check=False)


def test_too_little_space_is_found_before_the_data_are_read(tmp_path: Path) -> None:
    """On a disk of one MiB: both numbers, and no phase has begun."""
    options = f"--run-dir {tmp_path}/disk/run --repository {tmp_path}/disk/repository"
    (tmp_path / "disk").mkdir()
    done = _in_a_small_disk(
        f"{sys.executable} -m training run lenet5-fake {options}", "1m", tmp_path / "disk"
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "1.0 MiB are free, checkpoints, exported files and report need at least 9." in last
    assert "data\n" not in done.stderr


def test_space_is_counted_once_for_each_file_system(tmp_path: Path) -> None:
    """Two folders of one disk share what is free."""
    free = shutil.disk_usage(tmp_path).free
    check_space({tmp_path / "a": 1, tmp_path / "b" / "c": 1})
    with pytest.raises(WriteError, match=r"a and .*b: .* MiB are free, .* need at least"):
        check_space({tmp_path / "a": free * 2 // 3, tmp_path / "b": free * 2 // 3})


@pytest.mark.parametrize("option", ["--run-dir", "--repository"])
def test_a_place_that_cannot_be_written_is_found_before_the_data_are_read(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a file, and in a file system that takes no files: one line with the option."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below", Path("/proc/lenserve/run")):
        places = {"--run-dir": str(tmp_path / "run"), "--repository": str(tmp_path / "repository")}
        places[option] = str(place)
        code = main(["run", "lenet5-fake", *(text for pair in places.items() for text in pair)])
        *before, last = capsys.readouterr().err.splitlines()
        assert code in (1, 2)
        assert str(place) in last
        assert f"choose another {option}" in last
        assert "data" not in before
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    """As for a user whose repository belongs to another one."""
    tmp_path.chmod(0o555)
    with pytest.raises(WriteError, match="Permission denied; choose another --repository"):
        check_writable(tmp_path / "repository", "--repository")


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a file nor the directory that a run would make."""
    check_writable(tmp_path / "a" / "b", "--repository")
    assert not list(tmp_path.iterdir())


def damaged_files(path: Path) -> list[Path]:
    """Copies of a file that are cut off, changed, empty, or something else."""
    content = path.read_bytes()
    contents = [content[:length] for length in (0, 1, 10, len(content) // 2, len(content) - 30)]
    contents += [b"no weights", b"\x80\x04]", bytes(100), content[:200] + bytes(400) + content[600:]]
    contents += [content.replace(b"data.pkl", b"date.pkl"), content.replace(b"collections", b"collectionz")]
    for number, each in enumerate(contents):
        path.with_name(f"damaged-{number}{path.suffix}").write_bytes(each)
    return sorted(path.parent.glob(f"damaged-*{path.suffix}"))


def _refusal(weights: Path) -> str | None:
    """What is said of a file; None if it was read: a changed byte of a tensor does not show."""
    try:
        read_weights(str(weights), "resnet18")
    except WeightsError as error:
        return str(error)
    return None


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights_are_one_line_without_torchs_words(suffix: str, tmp_path: Path) -> None:
    """Whatever torch raises for a file, the message says what it is not."""
    path = tmp_path / f"good{suffix}"
    state = {"layer.weight": torch.zeros(30, 30)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file  # noqa: PLC0415 - only for this case

        save_file(state, path)
    for damaged in damaged_files(path):
        said = _refusal(damaged)
        assert said is None or str(damaged) in said
        assert not [word for word in TORCH_WORDS if word in (said or "").replace("pickled models", "")]
    for missing in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(
            WeightsError, match=r"cannot be read: (Is a directory|No such file or directory)$"
        ):
            read_weights(str(missing), "resnet18")


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    """Also where its archive is whole and its content is not."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"recipe_digest": "x"}, path)
    for damaged in (path, *damaged_files(path)):
        with pytest.raises(LenserveError, match=rf"checkpoint {damaged} cannot be read: the file is damaged"):
            checkpoint.read(damaged, recipe_digest="x", data_digest="x", processes=1)


def test_unreadable_weights_are_found_before_an_image_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data root does not even exist."""
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    options = ["--run-dir", str(tmp_path / "run"), "--repository", str(tmp_path / "repository")]
    weights = f"network.weights={tmp_path / 'weights.pth'}"
    assert main(["run", "transfer", "--data-root", str(tmp_path / "gone"), "--set", weights, *options]) == 1
    *before, last = capsys.readouterr().err.splitlines()
    assert f"weights {tmp_path / 'weights.pth'} cannot be read: it is not a state dict" in last
    assert "data" not in before


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_a_damaged_summary_is_one_line(content: bytes, lenient: Recipe, job: Job) -> None:
    """The line names the file and says what to do."""
    job.run_dir.mkdir()
    (job.run_dir / "recipe.json").write_text(lenient.model_dump_json())
    (job.run_dir / "summary.json").write_bytes(content)
    with pytest.raises(LenserveError) as caught:
        train_and_evaluate(lenient, replace(job, resume=True))
    said = str(caught.value)
    assert said.startswith(f"{job.run_dir / 'summary.json'} is damaged: ")
    assert said.endswith("; move the run folder away, and start without --resume")
    assert not {"pydantic", "validation error", "\n"} & set(said.split(" "))


def test_a_damaged_recipe_of_a_run_is_one_line(lenient: Recipe, job: Job) -> None:
    """Bytes that are not UTF-8."""
    job.run_dir.mkdir()
    (job.run_dir / "checkpoint.pt").write_bytes(b"")
    (job.run_dir / "recipe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderConflict, match=r"recipe\.json is invalid: not valid JSON"):
        train_and_evaluate(lenient, replace(job, resume=True))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--run-dir", b"run-\xe9"),
        ("--repository", b"repository-\xe9"),
        ("--set", b"network.weights=weights-\xe9.pth"),
        ("--set", b"data.file=some-\xe9.npz"),
    ],
)
def test_paths_that_are_not_utf8_are_refused_by_name_before_training(
    option: str, value: bytes, tmp_path: Path
) -> None:
    """ONNX Runtime opens no such paths, and reports cannot hold them."""
    text = os.fsdecode(value)
    command = [
        sys.executable,
        "-m",
        "training",
        "run",
        "transfer",
        "--data-root",
        str(tmp_path),
        option,
        text,
    ]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert value.decode(errors="backslashreplace") in line
    assert "UTF-8" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["recipes"], ["recipes", "--json"], ["layers", "lenet5", "--json"]])
def test_a_result_for_a_full_disk_is_one_line(command: list[str]) -> None:
    """`lenserve-train recipes --json > results.json` where there is no room."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "training", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("the result cannot be written to stdout: No space left on device")
