"""Random changes to training images that leave their meaning."""

from training.data.augmentation.pipeline import augment, flip_coins

__all__ = ["augment", "flip_coins"]
