"""Which images make up each epoch, and in what order: a pure function of seed and epoch."""

import numpy as np
import torch
from torch import Tensor


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


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches only: what is left over sits out, other images in every epoch.

    A last batch of one image would have no variance for batch norm to divide by.
    """
    return max(1, images // batch_size)
