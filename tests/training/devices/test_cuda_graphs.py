"""A captured step gives the same results as plain steps; a failed capture says what to set."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.devices.cuda_graphs import GraphedStep
from training.errors import GraphCaptureFailed


class FakeCapturer:
    """A capturer for the CPU, whose replay runs the work again on the same tensors."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.plain = self.replayed = 0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run at once."""
        self.plain += 1
        return work()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Run nothing until the replay, as CUDA does."""
        if self.error is not None:
            raise self.error
        result = torch.zeros(())

        def replay() -> None:
            self.replayed += 1
            result.copy_(work())

        return result, replay


def step(images: Tensor, targets: Tensor, batch: int) -> Tensor:
    """A result that depends on all arguments."""
    return (images.float().sum() + targets.sum()) / batch


def inputs(seed: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Images (count, 2, 2, 1) and labels."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 2, 2, 1), generator=random), torch.arange(count) + seed


def test_every_step_is_taken_on_its_own_images() -> None:
    """Warm-up steps, then replays: each gives the step's own result, and leaves earlier losses."""
    capturer = FakeCapturer()
    graphed = GraphedStep(step, capturer)
    given = [graphed(*inputs(seed), 4) for seed in range(8)]
    assert [float(each) for each in given] == [float(step(*inputs(seed), 4)) for seed in range(8)]
    assert (capturer.plain, capturer.replayed) == (3, 5)


@pytest.mark.parametrize("other", ["count", "dtype", "batch"])
def test_another_shape_is_not_replayed(other: str) -> None:
    """A batch of another shape runs as a plain step; the next one of the captured shape is replayed."""
    capturer = FakeCapturer()
    graphed = GraphedStep(step, capturer)
    for seed in range(5):
        graphed(*inputs(seed), 4)
    images, targets = inputs(5, count=3 if other == "count" else 4)
    images = images.float() if other == "dtype" else images
    batch = 8 if other == "batch" else 4
    assert float(graphed(images, targets, batch)) == float(step(images, targets, batch))
    assert capturer.replayed == 2
    graphed(*inputs(6), 4)
    assert capturer.replayed == 3


def test_a_failed_capture_says_what_to_set() -> None:
    """The message has the first line of the reason, and the setting to resume with."""
    graphed = GraphedStep(step, FakeCapturer(RuntimeError("operation not permitted\nand much more")))
    for seed in range(3):
        graphed(*inputs(seed), 4)
    message = r"cannot be captured as a CUDA graph \(operation not permitted\).*training\.cuda_graphs=false$"
    with pytest.raises(GraphCaptureFailed, match=message):
        graphed(*inputs(3), 4)


def test_out_of_memory_is_not_a_failed_capture() -> None:
    """The exception passes through unchanged."""
    graphed = GraphedStep(step, FakeCapturer(torch.OutOfMemoryError("CUDA out of memory")))
    for seed in range(3):
        graphed(*inputs(seed), 4)
    with pytest.raises(torch.OutOfMemoryError):
        graphed(*inputs(3), 4)
