"""Which images make up each epoch, and in what order: a pure function of seed and epoch."""

import numpy as np
import torch
from torch import Tensor


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """Shuffle the images of an epoch, uniformly, by seed and epoch alone.

    Returns: (images,) int64, a permutation of the indices.
    """
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(images))


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Draw N of N images so that every class appears equally often, by seed and epoch alone.

    Rare classes are repeated and frequent ones cut. Within a class the counts of two images differ by at
    most one.

    Args:
        labels: (N,) int64.
        seed: the run's seed.
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
    """Count whole batches, at least one. The remainder is skipped, different images in every epoch.

    A last batch of a single image would have no variance for batch norm to divide by.
    """
    return max(1, images // batch_size)
