"""Random augmentation of training images."""

from training.data.augmentation.pipeline import augment, flip_coins

__all__ = ["augment", "flip_coins"]
