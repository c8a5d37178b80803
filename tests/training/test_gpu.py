"""The same path on a GPU, where there is one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from training.device import choose
from training.job import Job, train_and_evaluate
from training.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason=f"torch {torch.__version__} finds no CUDA device"
    ),
]


def test_training_on_cuda_publishes_a_version_proven_on_the_cpu(
    job: Job, fake_recipe: Callable[..., Recipe]
) -> None:
    """Trained by CUDA, exported and compared on the CPU: every check holds, and the GPU is named."""
    cuda = replace(job, device=choose("cuda"))
    summary = train_and_evaluate(fake_recipe("network.batch_norm=true", "network.dropout=0.2"), cuda)
    assert summary.verdict == "published"
    assert summary.metrics["accuracy"] > 0.9
    report = (job.run_dir / "report" / "metrics.json").read_text()
    assert torch.cuda.get_device_name(0) in report
