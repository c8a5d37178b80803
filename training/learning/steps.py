"""The mathematics of training: loss, gradient and update of one step, and evaluation over many images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from training.data.batches import inference_batches
from training.data.storage.device_images import DeviceImages
from training.devices.process_group import SINGLE_PROCESS, ProcessGroup
from training.networks import Network

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weight classes inversely to their frequency: (K,) float32, with a mean of 1 over all images."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss that a step minimises, and how it is computed."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # (K,) float32
    max_gradient_norm: float | None = None
    autocast: torch.dtype | None = None  # dtype of the forward pass; None: float32
    group: ProcessGroup = SINGLE_PROCESS


def train_step(
    forward: Forward,
    optimizer: Optimizer,
    images: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    batch: int,
) -> Tensor:
    """Run one step of gradient descent on the mean cross-entropy of a batch.

    Args:
        forward: the forward pass of the network, in training mode.
        optimizer: the optimizer of its parameters, with the rate set.
        images: (b, H, W, C), this process's rows of the batch, uint8 or float32, 0..255.
        targets: (b,) int64 labels, or (b, K) float32 probabilities.
        objective: the settings of the loss.
        batch: number of images of all processes in this step.

    Returns: (2,) float32, the mean loss and the accuracy (0..1) of the whole batch before the step. Where
        images are mixed, the label with the largest share counts as correct.
    """
    with torch.autocast(images.device.type, objective.autocast, enabled=objective.autocast is not None):
        logits, _ = forward(images)  # (b, K)
    losses = functional.cross_entropy(
        logits.float(),
        targets,
        weight=objective.class_weights,
        reduction="none",
        label_smoothing=objective.label_smoothing,
    )  # (b,)
    # Divided by the size of the whole batch, not the sum of class weights: so the processes' losses add up.
    loss = losses.sum() / batch
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)  # (b,)
    accuracy = (logits.detach().argmax(dim=1) == labels).sum().float() / batch
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    total = torch.stack([loss.detach(), accuracy])  # (2,)
    objective.group.sum_many_([*(value.grad for value in parameters if value.grad is not None), total])
    if objective.max_gradient_norm is not None:
        nn.utils.clip_grad_norm_(parameters, objective.max_gradient_norm)
    optimizer.step()
    return total


@torch.no_grad()
def predict(network: Network, images: Tensor | DeviceImages, rows: range | None = None) -> Iterator[Tensor]:
    """Yield the logits of images, batch by batch.

    Args:
        network: put in evaluation mode, and left in it.
        images: (N, H, W, C) uint8, on any device.
        rows: a range of step 1; None: all images.

    Yields: (B, K) float32.
    """
    network.eval()
    device = next(network.parameters()).device
    for batch in inference_batches(images, rows):
        yield network(batch.to(device))[0]


@torch.no_grad()
def measure(
    network: Network, images: Tensor | DeviceImages, labels: Tensor, group: ProcessGroup = SINGLE_PROCESS
) -> tuple[float, float]:
    """Measure mean cross-entropy and accuracy (0..1) over all images, each process a part of them."""
    mine = group.rows(len(labels))
    sums = torch.zeros(2, dtype=torch.float64)
    if len(labels[mine]):
        logits = torch.cat(list(predict(network, images, range(len(labels))[mine])))  # (n, K)
        sums[0] = functional.cross_entropy(logits, labels[mine], reduction="sum").double()
        sums[1] = (logits.argmax(dim=1) == labels[mine]).sum()
    loss, correct = (group.sum_(sums) / len(labels)).tolist()
    return loss, correct
