"""Mixup and CutMix: images and labels mix in the same proportion."""

import pytest
import torch

from training.data.augmentation.mixing import draw_mixture, mix
from training.recipe.sections import AugmentationRecipe

WHITE = torch.full((6, 10, 10, 1), 200, dtype=torch.uint8)
BLACK = torch.zeros_like(WHITE)
ONES, ZEROS = torch.ones(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)


def test_no_mixing_draws_nothing() -> None:
    """Recipes that do not mix have no mixture."""
    assert draw_mixture(6, AugmentationRecipe(), seed=0, epoch=0, step=0) is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_follow_the_part_of_the_pixels(kind: str) -> None:
    """White images of class 1 and black partners of class 0: the mean grey level is class 1's share."""
    shares = set()
    for step in range(20):
        mixture = draw_mixture(6, AugmentationRecipe(**{kind: 1.0}), seed=0, epoch=0, step=step)
        assert mixture is not None
        assert mixture.kind == kind
        assert sorted(mixture.partners.tolist()) == list(range(6))
        images, targets = mix(WHITE, ONES, BLACK, ZEROS, mixture=mixture, classes=3)
        share = images.mean(dim=(1, 2, 3)) / 200
        assert torch.allclose(targets[:, 1], share, atol=1e-6)
        assert torch.allclose(targets.sum(dim=1), torch.ones(6))
        shares.add(round(float(share[0]), 3))
        values = set(images.unique().tolist())
        assert values <= {0.0, 200.0} if kind == "cutmix" else len(values) == 1
    assert len(shares) > 10


def test_mixup_and_cutmix_alternate_at_random() -> None:
    """With both alphas set each is drawn about half the time, by seed, epoch and step alone."""
    recipe = AugmentationRecipe(mixup=0.2, cutmix=1.0)
    drawn = [draw_mixture(6, recipe, seed=0, epoch=0, step=step) for step in range(30)]
    assert {mixture.kind for mixture in drawn if mixture} == {"mixup", "cutmix"}
    again = draw_mixture(6, recipe, seed=0, epoch=0, step=7)
    assert again is not None
    assert drawn[7] is not None
    assert (again.kind, again.share, again.centre) == (drawn[7].kind, drawn[7].share, drawn[7].centre)
