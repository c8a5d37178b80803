"""The history of a run: one record for each epoch. Knows no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Losses, accuracy and speed of one epoch."""

    epoch: int  # from 1
    train_loss: float
    validation_loss: float
    validation_accuracy: float  # 0..1
    learning_rate: float  # at the epoch's last step
    images_per_s: float
    seconds: float
