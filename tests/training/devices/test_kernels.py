"""Fast and reproducible kernels; operations without a deterministic form are reported once."""

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

from training.devices.kernels import Kernels, full_precision, reporting_nondeterminism, use_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore torch's flags after each test."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def position() -> dict[str, object]:
    """All flags that `use_kernels` sets."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "workspace": os.environ.get(WORKSPACE),
    }


def test_fast_kernels_are_measured_and_may_use_tf32() -> None:
    """Benchmarking and TF32 are on, determinism is off."""
    use_kernels("fast", CUDA)
    assert position() == {
        "deterministic": False,
        "warn_only": False,
        "cudnn_deterministic": False,
        "benchmark": True,
        "tf32": (True, True),
        "workspace": None,
    }


def test_reproducible_kernels_are_deterministic_in_full_precision() -> None:
    """CUDA's operations without a deterministic form only warn; cuBLAS gets its fixed workspace."""
    use_kernels("fast", CUDA)
    use_kernels("reproducible", CUDA)
    assert position() == {
        "deterministic": True,
        "warn_only": True,
        "cudnn_deterministic": True,
        "benchmark": False,
        "tf32": (False, False),
        "workspace": ":4096:8",
    }


def test_a_workspace_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace set by the user is kept."""
    monkeypatch.setenv(WORKSPACE, ":16:8")
    use_kernels("reproducible", CUDA)
    assert os.environ[WORKSPACE] == ":16:8"


@pytest.mark.parametrize("kernels", ["fast", "reproducible"])
def test_a_cpu_is_always_deterministic(kernels: Kernels) -> None:
    """For either choice; a nondeterministic operation is an error, not a warning."""
    use_kernels(kernels, CPU)
    assert position() == {
        "deterministic": True,
        "warn_only": False,
        "cudnn_deterministic": True,
        "benchmark": False,
        "tf32": (False, False),
        "workspace": None,
    }
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize("kernels", ["fast", "reproducible"])
def test_torch_can_read_its_flags_by_either_name(kernels: Kernels) -> None:
    """torch.compile reads older and newer names of the flags: neither raises, and they agree."""
    use_kernels(kernels, CUDA)
    fast = kernels == "fast"
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == fast
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == fast  # type: ignore[attr-defined]
    assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")


def test_full_precision_turns_tf32_and_autocast_off_and_then_on_again() -> None:
    """The flags are also restored after an error."""
    use_kernels("fast", CUDA)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert position()["tf32"] == (False, False)
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        with pytest.raises(ZeroDivisionError), full_precision(CPU):
            raise ZeroDivisionError
        assert position()["tf32"] == (True, True)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_an_operation_without_a_deterministic_form_is_reported_once() -> None:
    """`put_` has none, not even on a CPU; other warnings pass through."""
    use_kernels("reproducible", CUDA)
    reported: list[str] = []
    values, index = torch.zeros(3), torch.tensor([0, 1])
    with warnings.catch_warnings(record=True) as passed_on:
        with reporting_nondeterminism(reported.append):
            for _ in range(3):
                values.put_(index, torch.ones(2))
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("something else", UserWarning, stacklevel=1)
        assert [str(each.message) for each in passed_on] == ["something else"]
    assert reported == ["put_ has no deterministic form on CUDA: results may differ between runs"]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("Flash Attention defaults to a non-deterministic algorithm. To ...", "Flash Attention"),
        (
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms`\n...",
            "matrix multiplication (cuBLAS)",
        ),
    ],
)
def test_other_words_of_torch_name_the_operation_too(said: str, named: str) -> None:
    """The warnings of attention and of cuBLAS are worded differently."""
    reported: list[str] = []
    with reporting_nondeterminism(reported.append):
        warnings.warn(said, UserWarning, stacklevel=1)
    assert reported == [f"{named} has no deterministic form on CUDA: results may differ between runs"]
