"""Out-of-memory errors become one line with numbers and what to set."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.fake_recipe import FakeRecipe
from training.devices.out_of_memory import explaining_out_of_memory, inference_advice, training_advice
from training.errors import OutOfMemory
from training.run.job import Job, train_and_evaluate

CPU = torch.device("cpu")

# One layer's maps of a batch are 196 GiB: more than this process may have, whatever the machine has.
WIDE = (
    "data.fake_images_per_class=3500",
    "data.near_duplicates=ignore",
    "training.batch_size=8192",
    "network.maps=[8192,16]",
)
PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
from training.cli import main
sys.exit(main(sys.argv[1:]))
"""


def explained(error: BaseException, advice: str = "set training.batch_size lower (now 64)") -> str:
    """The message that an error is converted to."""
    with pytest.raises(OutOfMemory) as caught, explaining_out_of_memory("training", CPU, advice):
        raise error
    return str(caught.value)


def test_a_step_too_large_for_the_machine_ends_with_one_line(tmp_path: Path) -> None:
    """The real command: exit code 1, no traceback, and both numbers."""
    settings = [word for setting in WIDE for word in ("--set", setting)]
    where = ["--device", "cpu", "--run-dir", str(tmp_path / "run"), "--repository", str(tmp_path / "models")]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, "run", "lenet5-fake", *where, *settings],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert "the machine is out of memory in training: " in line
    assert " GiB are in use and 196.0 GiB more were requested; " in line
    assert "set training.batch_size lower (now 8,192), or training.precision=bfloat16" in line


def test_a_gpu_s_own_error_is_explained() -> None:
    """The requested size comes from torch's message, in GiB or MiB."""
    said = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which"
    assert explained(torch.OutOfMemoryError(said)).startswith("the GPU is out of memory in training: ")
    assert "20.0 GiB more were requested; set training.batch_size" in explained(torch.OutOfMemoryError(said))
    small = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB.")
    assert " and 512 MiB more were requested" in explained(small)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_cuda_s_libraries_say_is_explained_too(said: str) -> None:
    """CUDA's libraries raise RuntimeError, without a size."""
    assert explained(RuntimeError(said)).startswith("the GPU is out of memory in training: ")
    assert "requested" not in explained(RuntimeError(said))


def test_a_machine_s_own_error_is_explained() -> None:
    """Errors of torch's CPU allocator, and MemoryError."""
    said = (
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    )
    full = explained(RuntimeError(said + "to allocate 107374182400 bytes. Error code 12"))
    assert full.startswith("the machine is out of memory in training: ")
    assert " and 100.0 GiB more were requested" in full
    assert explained(MemoryError()).startswith("the machine is out of memory in training: ")


def test_other_errors_stay_what_they_are() -> None:
    """Other RuntimeErrors pass through unchanged."""
    with pytest.raises(RuntimeError, match="shapes"), explaining_out_of_memory("training", CPU, ""):
        raise RuntimeError("shapes cannot be multiplied")


def test_advice_names_what_is_set_now(fake_recipe: FakeRecipe) -> None:
    """The advice has current values, and omits what is set already."""
    assert "training.precision=bfloat16" in training_advice(fake_recipe(), CPU)
    halved = training_advice(fake_recipe("training.precision=bfloat16", "training.batch_size=4096"), CPU)
    assert halved == "set training.batch_size lower (now 4,096), or choose a smaller network"
    assert "training.cuda_graphs=false" in training_advice(fake_recipe(), torch.device("cuda"))
    assert "(now 28 x 28)" in inference_advice(fake_recipe())


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("training.learning.learner.train_step", "training"),
        ("training.learning.loop.measure", "validation"),
        ("training.run.job.predict", "calibration"),
    ],
)
def test_each_phase_of_a_run_explains_itself(
    place: str,
    phase: str,
    job: Job,
    fake_recipe: FakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps, validation and calibration; for the last two the advice is about image size."""

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(place, fail)
    advice = "training.batch_size" if phase == "training" else "geometry.height"
    with pytest.raises(OutOfMemory, match=rf"the GPU is out of memory in {phase}: .* 2\.0 GiB.*{advice}"):
        train_and_evaluate(fake_recipe("training.epochs=1"), job)
