"""The history of a run: one record for each epoch, over all stages of training. Independent of torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Losses, accuracy and speed of one epoch."""

    epoch: int  # from 1, over all stages of the run
    train_loss: float
    validation_loss: float
    validation_accuracy: float  # 0..1
    learning_rate: float  # at the epoch's last step
    images_per_s: float
    seconds: float
    head_only: bool = False  # in the stage that trains only a backbone's head
    train_accuracy: float | None = None  # 0..1, of the augmented images; None: recorded by an older version


@dataclass(frozen=True, slots=True)
class Stage:
    """The place of one training among those of its run, which share one history and one axis of steps."""

    earlier: tuple[EpochRecord, ...] = ()  # of the stage before
    later_epochs: int = 0  # of the stage after, at most
    head_only: bool = False
