"""The mathematics of training: one step forward and back, and the forward pass over many images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from training.data.storage.placed import Placed
from training.devices.parallel import ALONE, Group
from training.networks import Network

_MOST_AT_ONCE = 1000  # images; large enough to be fast
_MOST_PIXELS_AT_ONCE = 16 * 224 * 224  # 512 maps of as many pixels, as the widest network has, are 1.6 GB

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images, a pure function of seed and epoch.

    Returns: (images,) int64, a permutation.
    """
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(images))


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """As many images as there are, drawn so that each class comes as often; a pure function, as above.

    Each class is gone through in a random order, as often as it takes; no image comes twice as often as
    another one of its class, give or take one time.

    Args:
        labels: (N,) int64.
        seed: of the run.
        epoch: from 0.

    Returns: (N,) int64 indices.
    """
    random = np.random.default_rng([seed, epoch])
    truth = labels.cpu().numpy()
    classes = np.unique(truth)
    shares = np.full(len(classes), len(truth) // len(classes))
    shares[random.permutation(len(classes))[: len(truth) % len(classes)]] += 1
    drawn = [
        _cycled(np.flatnonzero(truth == label), int(share), random)
        for label, share in zip(classes, shares, strict=True)
    ]
    return torch.from_numpy(random.permutation(np.concatenate(drawn)))


def _cycled(members: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    rounds = -(-count // len(members))
    return np.concatenate([random.permutation(members) for _ in range(rounds)])[:count]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """(K,) float32, inverse to how often a class comes; their mean over all images is 1."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches only: what is left over sits out, other images in every epoch.

    A last batch of one image would have no variance for batch norm to divide by.
    """
    return max(1, images // batch_size)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step makes smaller, and how it is computed."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # (K,) float32
    max_gradient_norm: float | None = None
    autocast: torch.dtype | None = None  # of the forward pass
    group: Group = ALONE


def train_step(
    forward: Forward,
    optimizer: Optimizer,
    images: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    batch: int,
) -> Tensor:
    """One step of gradient descent on the mean cross-entropy of a batch.

    Args:
        forward: of the network in training mode.
        optimizer: of the network's parameters, its rate set.
        images: (b, H, W, C), this process's rows of the batch.
        targets: (b,) int64 labels, or (b, K) float32 shares.
        objective: what else there is to it.
        batch: images of all processes in this step.

    Returns: () float32, the mean loss of the whole batch before the step.
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
    # By the whole batch's count and not by the class weights' sum: so the parts of several processes add up.
    loss = losses.sum() / batch
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    total = loss.detach()
    objective.group.sum_many_([*(value.grad for value in parameters if value.grad is not None), total])
    if objective.max_gradient_norm is not None:
        nn.utils.clip_grad_norm_(parameters, objective.max_gradient_norm)
    optimizer.step()
    return total


def forward_batches(images: Tensor | Placed, rows: range | None = None) -> Iterator[Tensor]:
    """As many as go through a network at once without gradients, of images (N, H, W, C) or features (N, D).

    Args:
        images: of which nothing is read before its turn.
        rows: of them, one after the other; none: all.
    """
    rows = range(len(images)) if rows is None else rows
    pixels = images.shape[1] * images.shape[2] if len(images.shape) == 4 else 1  # noqa: PLR2004 - (N, H, W, C)
    count = max(1, min(_MOST_AT_ONCE, _MOST_PIXELS_AT_ONCE // pixels))
    for start in rows[::count] or [rows.start]:  # of none at all, one batch that is empty
        yield images[start : min(start + count, rows.stop)]


@torch.no_grad()
def predict(network: Network, images: Tensor | Placed, rows: range | None = None) -> Iterator[Tensor]:
    """Logits of images, batch by batch, in evaluation mode.

    Args:
        network: left in evaluation mode.
        images: (N, H, W, C) uint8, on any device.
        rows: of the images, one after the other; none: all.

    Yields: (B, K) float32.
    """
    network.eval()
    device = next(network.parameters()).device
    for batch in forward_batches(images, rows):
        yield network(batch.to(device))[0]


@torch.no_grad()
def measure(
    network: Network, images: Tensor | Placed, labels: Tensor, group: Group = ALONE
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0..1) over all images; each process measures its part of them."""
    mine = group.rows(len(labels))
    sums = torch.zeros(2, dtype=torch.float64)
    if len(labels[mine]):
        logits = torch.cat(list(predict(network, images, range(len(labels))[mine])))  # (n, K)
        sums[0] = functional.cross_entropy(logits, labels[mine], reduction="sum").double()
        sums[1] = (logits.argmax(dim=1) == labels[mine]).sum()
    loss, correct = (group.sum_(sums) / len(labels)).tolist()
    return loss, correct
