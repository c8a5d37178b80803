"""The order of an epoch's images."""

from collections import Counter

import torch

from training.data.sampling import balanced_order, epoch_order, steps_per_epoch


def test_order_is_a_permutation_that_follows_from_seed_and_epoch() -> None:
    """A permutation, equal for equal seed and epoch, and different otherwise."""
    order = epoch_order(100, seed=3, epoch=7)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, seed=3, epoch=7))
    assert not torch.equal(order, epoch_order(100, seed=3, epoch=8))
    assert not torch.equal(order, epoch_order(100, seed=4, epoch=7))


def test_a_balanced_order_has_each_class_as_often_and_no_image_much_more() -> None:
    """Classes of 90, 9 and 1 images fill a third each, and repeat their images evenly."""
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    order = balanced_order(labels, seed=0, epoch=0)
    assert torch.equal(order, balanced_order(labels, seed=0, epoch=0))
    assert not torch.equal(order, balanced_order(labels, seed=0, epoch=1))
    assert len(order) == 100
    assert sorted(torch.bincount(labels[order]).tolist()) == [33, 33, 34]
    of_second_class = Counter(index for index in order.tolist() if 90 <= index < 99)
    assert len(of_second_class) == 9
    assert max(of_second_class.values()) - min(of_second_class.values()) <= 1


def test_only_whole_batches_count_but_at_least_one() -> None:
    """The remainder is skipped, so that no batch is too small for batch norm."""
    assert [steps_per_epoch(images, 32) for images in (129, 64, 63, 5)] == [4, 2, 1, 1]
