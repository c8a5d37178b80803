"""A recorded step gives what plain steps give; what cannot be recorded goes on as before."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.cuda_graphs import GraphedStep


class Recorder:
    """A recorder for the CPU: what it recorded runs again on the same tensors."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.plain = self.replayed = 0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run at once."""
        self.plain += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Run nothing yet, as CUDA would."""
        if self.error is not None:
            raise self.error
        result = torch.zeros(())

        def replay() -> None:
            self.replayed += 1
            result.copy_(work())

        return result, replay


def step(images: Tensor, targets: Tensor, batch: int) -> Tensor:
    """Something that depends on all of them."""
    return (images.float().sum() + targets.sum()) / batch


def inputs(seed: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Images (count, 2, 2, 1) and labels."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 2, 2, 1), generator=random), torch.arange(count) + seed


def test_every_step_is_taken_on_its_own_images() -> None:
    """Three plain ones, then replays: each gives what the step itself gives, and an earlier loss stays."""
    recorder = Recorder()
    graphed = GraphedStep(step, recorder, pytest.fail)
    given = [graphed(*inputs(seed), 4) for seed in range(8)]
    assert [float(each) for each in given] == [float(step(*inputs(seed), 4)) for seed in range(8)]
    assert (recorder.plain, recorder.replayed) == (3, 5)


@pytest.mark.parametrize("other", ["count", "dtype", "batch"])
def test_another_shape_is_not_replayed(other: str) -> None:
    """A step on other images than were recorded is a plain one; the next that fits is replayed again."""
    recorder = Recorder()
    graphed = GraphedStep(step, recorder, pytest.fail)
    for seed in range(5):
        graphed(*inputs(seed), 4)
    images, targets = inputs(5, count=3 if other == "count" else 4)
    images = images.float() if other == "dtype" else images
    batch = 8 if other == "batch" else 4
    assert float(graphed(images, targets, batch)) == float(step(images, targets, batch))
    assert recorder.replayed == 2
    graphed(*inputs(6), 4)
    assert recorder.replayed == 3


def test_a_step_that_cannot_be_recorded_goes_on_as_plain_steps() -> None:
    """It is said once, with the first line of the reason."""
    said: list[str] = []
    graphed = GraphedStep(step, Recorder(RuntimeError("operation not permitted\nand much more")), said.append)
    given = [float(graphed(*inputs(seed), 4)) for seed in range(6)]
    assert given == [float(step(*inputs(seed), 4)) for seed in range(6)]
    reason = "training goes on without CUDA graphs, the step cannot be recorded: operation not permitted"
    assert said == [reason]


def test_full_memory_is_no_reason_to_go_on() -> None:
    """Plain steps would need as much."""
    graphed = GraphedStep(step, Recorder(torch.OutOfMemoryError("CUDA out of memory")), pytest.fail)
    for seed in range(3):
        graphed(*inputs(seed), 4)
    with pytest.raises(torch.OutOfMemoryError):
        graphed(*inputs(3), 4)
