"""The mathematics of training: one step forward and back, and the forward pass over many images."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from training.networks import Network

_FORWARD_BATCH = 1000  # images; large enough to be fast, small enough for any memory


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images, a pure function of seed and epoch.

    Returns: (images,) int64, a permutation.
    """
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(images))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches only: what is left over sits out, other images in every epoch.

    A last batch of one image would have no variance for batch norm to divide by.
    """
    return max(1, images // batch_size)


def train_step(network: Network, optimizer: Optimizer, images: Tensor, labels: Tensor, rate: float) -> Tensor:
    """One step of gradient descent on the mean cross-entropy.

    Args:
        network: in training mode.
        optimizer: of the network's parameters.
        images: (B, H, W, C) uint8.
        labels: (B,) int64.
        rate: learning rate of this step.

    Returns: () float32, the mean loss before the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits, _ = network(images)  # (B, K)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def predict(network: Network, images: Tensor, batch_size: int = _FORWARD_BATCH) -> Iterator[Tensor]:
    """Logits of all images, batch by batch, in evaluation mode.

    Args:
        network: left in evaluation mode.
        images: (N, H, W, C) uint8 on the network's device.
        batch_size: of each pass.

    Yields: (B, K) float32.
    """
    network.eval()
    for batch in torch.split(images, batch_size):
        yield network(batch)[0]


@torch.no_grad()
def measure(network: Network, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0..1) over all images, in evaluation mode."""
    logits = torch.cat(list(predict(network, images)))  # (N, K)
    loss = functional.cross_entropy(logits, labels)
    correct = (logits.argmax(dim=1) == labels).sum()
    return float(loss), float(correct) / len(labels)
