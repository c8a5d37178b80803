"""Shifts move images and nothing else."""

import torch

from training.data.augmentation import shift_randomly


def test_no_shift_gives_the_images_back() -> None:
    """Zero pixels change nothing and draw nothing."""
    images = torch.randint(0, 256, (4, 5, 6, 1), dtype=torch.uint8)
    before = torch.get_rng_state()
    assert shift_randomly(images, 0, 0) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_each_shift_is_one_of_the_possible_ones() -> None:
    """Every result is its image moved by at most so many pixels, the background coming in."""
    torch.manual_seed(0)
    images = torch.randint(1, 256, (32, 6, 7, 3), dtype=torch.uint8)
    moved = shift_randomly(images, 2, background=9)
    offsets = set()
    for image, result in zip(images, moved, strict=True):
        frame = torch.full((10, 11, 3), 9, dtype=torch.uint8)
        frame[2:8, 2:9] = image
        matching = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(frame[down : down + 6, right : right + 7], result)
        ]
        assert matching
        offsets.update(matching)
    assert len(offsets) > 10
