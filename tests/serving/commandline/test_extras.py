"""Messages about a missing extra, or two builds of ONNX Runtime."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.commandline import require_import, require_server, require_training
from serving.errors import UsageError


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make modules look as if they were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, distributions: Sequence[str]) -> None:
    """Add only the metadata of distributions to the path."""
    for name in distributions:
        information = folder / f"{name.replace('-', '_')}-1.31.1.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(folder)


def test_a_complete_installation_is_accepted() -> None:
    """The environment of the tests has all extras, and one build of ONNX Runtime."""
    require_server()
    require_import()
    require_training()


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        (["onnxruntime"], "missing: onnxruntime"),
        (["uvloop"], "missing: uvloop"),
        (["onnxruntime", "h11", "uvloop"], "missing: onnxruntime and 2 more"),
    ],
)
def test_a_missing_server_names_both_of_its_extras(
    modules: list[str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has to be chosen."""
    hide(monkeypatch, *modules)
    with pytest.raises(UsageError) as refused:
        require_server()
    assert str(refused.value) == (
        f"the server is not installed ({missing}): "
        "in a checkout, pip install '.[serve]', or '.[serve-cpu]' for CPUs only"
    )


def test_two_builds_of_onnx_runtime_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both packages own the same files: both must be removed before one is installed."""
    install(monkeypatch, tmp_path, ["onnxruntime", "onnxruntime-gpu"])
    with pytest.raises(UsageError) as refused:
        require_server()
    assert str(refused.value) == (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
        "pip uninstall onnxruntime onnxruntime-gpu, "
        "then in a checkout pip install '.[serve]' (GPU and CPU) or '.[serve-cpu]'"
    )


def test_importing_without_onnx_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is small, and the server does without."""
    hide(monkeypatch, "onnx")
    with pytest.raises(UsageError) as refused:
        require_import()
    assert str(refused.value) == (
        "importing models is not installed (missing: onnx): in a checkout, pip install '.[serve,import]', "
        "or '.[serve-cpu,import]' for CPUs only"
    )


def test_missing_training_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first missing module, the number of others, and the command."""
    hide(monkeypatch, "torch", "torchvision")
    with pytest.raises(UsageError) as refused:
        require_training()
    assert str(refused.value) == (
        "the training job is not installed (missing: torch and 1 more): "
        "in a checkout, pip install '.[serve,train]'"
    )
