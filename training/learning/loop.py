"""The training loop: epochs, early stopping, the best weights, checkpoints, interruption.

The mathematics is in learner.py and steps.py. Order and augmentation are pure functions of seed, epoch and
step; dropout uses torch's generators, whose state is in the checkpoint. So a killed run resumes bit for bit.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.data import Dataset
from training.data.batches import Batches
from training.data.storage.device_images import DeviceImages
from training.devices.out_of_memory import explaining_out_of_memory, inference_advice, training_advice
from training.devices.process_group import SINGLE_PROCESS, ProcessGroup
from training.errors import CheckpointError, Diverged
from training.learning import checkpoint
from training.learning.checkpoint import Checkpoint, Progress
from training.learning.history import EpochRecord, Stage
from training.learning.learner import Learner
from training.learning.schedule import learning_rate
from training.learning.steps import measure
from training.networks import Network, build
from training.recipe import Recipe
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.loggers import Logger

_LOSS_CHECK_STEPS = 50  # between checks of the losses, each of which waits for the GPU


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The network with its best weights, and the history of its training."""

    network: Network
    history: tuple[EpochRecord, ...]  # with that of the earlier stage
    best_epoch: int  # in that history
    data_digest: str
    earlier_seconds: float  # training time before the run was resumed


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    network: Network | None = None,
    device: torch.device,
    checkpoint_path: Path,
    display: Display,
    interrupts: Interrupts,
    group: ProcessGroup = SINGLE_PROCESS,
    loggers: tuple[Logger, ...] = (),
    stage: Stage = Stage(),  # noqa: B008 - frozen
    extends: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train to the end, from the checkpoint if there is one.

    Args:
        recipe: the settings of the training.
        dataset: the data; for a `HeadOnly` network, with features (N, D) float32 in place of images.
        network: the network to train; None: build a new one.
        device: where to train.
        checkpoint_path: the checkpoint of this training.
        display: shows progress.
        interrupts: checked after every step.
        group: the processes that train together.
        loggers: get the record of each epoch.
        stage: what the run trains before and after.
        extends: digest of a shorter recipe; its finished checkpoint is continued too.
        clock: a monotonic clock in seconds, which times the steps.

    Raises:
        CheckpointError: the checkpoint cannot be read, or belongs to another run.
        GraphCaptureFailed: a step cannot be captured as a CUDA graph.
        Diverged: the loss became NaN or infinite.
        OutOfMemory: the GPU or the machine is out of memory.
        Interrupted: a signal stopped the run; the checkpoint is written.
        ProcessLost: another process of the group exited.
        DataError: images on disk can no longer be read.
    """
    with explaining_out_of_memory("training", device, training_advice(recipe, device)):
        loop = _Loop(recipe, dataset, network, device, checkpoint_path, group, stage, clock)
        loop.restore(extends)
        earlier_seconds = loop.seconds()
        epochs = loop.first_epoch + recipe.training.epochs + stage.later_epochs
        with display.training(epochs * loop.batches.steps, recipe.training.batch_size):
            while not loop.progress.finished:
                loop.run_epoch(display, interrupts)
                for logger in loggers:
                    logger.epoch(loop.history[-1])
    if loop.progress.epoch < recipe.training.epochs:
        waited = f"{recipe.training.patience} epochs without a lower validation loss"
        display.note(f"stopped early: {waited} (training.patience)")
    network = loop.learner.eval_network
    network.load_state_dict(loop.best_weights)
    network.use_memory_format(torch.contiguous_format)  # as in the exported file
    return TrainResult(
        network.eval(),
        (*stage.earlier, *loop.history),
        loop.first_epoch + loop.progress.best_epoch,
        loop.data_digest,
        earlier_seconds,
    )


class _Loop:
    """The state of one run, all of which a checkpoint saves and restores."""

    def __init__(  # noqa: PLR0917 - the arguments of `train`
        self,
        recipe: Recipe,
        dataset: Dataset,
        network: Network | None,
        device: torch.device,
        path: Path,
        group: ProcessGroup,
        stage: Stage,
        clock: Callable[[], float],
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.path = path
        self.group = group
        self.stage = stage
        self.first_epoch = len(stage.earlier)  # epochs of the run before this training
        self._clock = clock
        self.data_digest = dataset.digest()
        torch.manual_seed(recipe.training.seed)  # equal initial weights on every process
        self.batches = Batches(recipe, dataset.train, len(dataset.labels), device, group)
        network = network or build(recipe.network, recipe.geometry, len(dataset.labels))
        self.learner = Learner(recipe, network, self.batches.images, self.batches.labels, group)
        if group.rank:  # different dropout on each process
            torch.manual_seed(recipe.training.seed + group.rank)
        self.validation = (
            DeviceImages(dataset.validation.images, device),  # (N, H, W, C) uint8
            torch.from_numpy(dataset.validation.labels).to(device),  # (N,) int64
        )
        self.progress = Progress()
        # (steps, 2), loss and accuracy of each step of the current epoch.
        self.losses = torch.zeros((self.batches.steps, 2), device=device)
        self.history: list[EpochRecord] = []
        self.best_weights = copy.deepcopy(self.learner.eval_network.state_dict())
        self._clock_s = clock()

    def seconds(self) -> float:
        """Training time so far, without validation."""
        return sum(record.seconds for record in self.history) + self.progress.epoch_seconds

    def run_epoch(self, display: Display, interrupts: Interrupts) -> None:
        """Finish the current epoch, validate, and save."""
        interval = self.recipe.training.checkpoint_interval_steps
        self._clock_s = self._clock()
        while self.progress.step < self.batches.steps:
            self._run_step()
            display.step_done(
                (self.first_epoch + self.progress.epoch) * self.batches.steps + self.progress.step
            )
            self._stop_if_interrupted(interrupts)
            if self.progress.step % _LOSS_CHECK_STEPS == 0:
                self._check_losses()
            if self.progress.step % interval == 0:
                self.save()
        self._check_losses()
        record = self._finish_epoch()
        display.epoch_done(record, is_best=self.progress.best_epoch == self.progress.epoch)
        self._clock_s = self._clock()  # validation time does not count for the next epoch
        self.save()

    def _run_step(self) -> None:
        epoch, step = self.progress.epoch, self.progress.step
        images, targets = self.batches.take(epoch, step)
        done = epoch * self.batches.steps + step
        self.losses[step] = self.learner.step(
            images, targets, rate=self._rate(done), steps=done + 1, batch=self.batches.batch_size
        )
        self.progress.step += 1

    def _rate(self, done: int) -> float:
        """Learning rate of the step after `done` steps."""
        return learning_rate(done, self.recipe.training.epochs * self.batches.steps, self.recipe.training)

    def _epoch_number(self) -> int:
        """The current epoch's number in the run, from 1."""
        return self.first_epoch + self.progress.epoch + 1

    def _check_losses(self) -> None:
        losses = self.losses[: self.progress.step, 0]
        wrong = (~torch.isfinite(losses)).nonzero()
        if len(wrong):
            step = int(wrong[0])
            raise Diverged(
                f"the loss became NaN or infinite in epoch {self._epoch_number()}, step {step + 1}: "
                f"training.learning_rate {self.recipe.training.learning_rate} may be too high"
            )

    def _stop_clock(self) -> None:
        """Add the time since the clock was last read to this epoch."""
        now_s = self._clock()
        self.progress.epoch_seconds += now_s - self._clock_s
        self._clock_s = now_s

    def _finish_epoch(self) -> EpochRecord:
        progress, recipe = self.progress, self.recipe.training
        train_loss, train_accuracy = self.losses.double().mean(dim=0).tolist()
        self._stop_clock()
        with explaining_out_of_memory("validation", self.device, inference_advice(self.recipe)):
            validation_loss, validation_accuracy = measure(
                self.learner.eval_network, *self.validation, self.group
            )
        record = EpochRecord(
            epoch=self._epoch_number(),
            train_loss=train_loss,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=self._rate((progress.epoch + 1) * self.batches.steps - 1),
            images_per_s=self.batches.steps * self.batches.batch_size / progress.epoch_seconds,
            seconds=progress.epoch_seconds,
            head_only=self.stage.head_only,
            train_accuracy=train_accuracy if math.isfinite(train_accuracy) else None,
        )
        self.history.append(record)
        progress.epoch += 1
        if recipe.keep == "last" or validation_loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = validation_loss, progress.epoch
            self.best_weights = copy.deepcopy(self.learner.eval_network.state_dict())
        progress.step, progress.epoch_seconds = 0, 0.0
        self.losses.zero_()
        waited = progress.epoch - max(progress.best_epoch, progress.extended_at)
        patience_exhausted = waited >= recipe.patience
        progress.finished = patience_exhausted or progress.epoch == recipe.epochs
        return record

    def _stop_if_interrupted(self, interrupts: Interrupts) -> None:
        """Stop all processes after the same step, whichever received the signal."""
        stopped = self.group.sum_(torch.tensor([float(interrupts.received is not None)]))
        if not stopped.item():
            return
        self.save()
        interrupts.stop(f"saved in epoch {self._epoch_number()} after step {self.progress.step}")

    def save(self) -> None:
        """Write the checkpoint, in the main process."""
        self._stop_clock()
        on_cuda = self.device.type == "cuda"
        cpu_random = self.group.gather(torch.get_rng_state())
        cuda_random = self.group.gather(torch.cuda.get_rng_state(self.device)) if on_cuda else None
        if self.group.is_main:
            state = Checkpoint(
                recipe_digest=self.recipe.digest(),
                data_digest=self.data_digest,
                progress=asdict(self.progress),
                history=[asdict(record) for record in self.history],
                losses=self.losses,
                learner=self.learner.state(),
                best_weights=self.best_weights,
                cpu_random=cpu_random,
                cuda_random=cuda_random,
            )
            checkpoint.save(state, self.path)
        self._clock_s = self._clock()

    def restore(self, extends: str | None = None) -> None:
        """Resume from the checkpoint, if there is one.

        The finished checkpoint of the shorter recipe with digest `extends` goes on from its last epoch.
        """
        self.group.barrier()  # no process reads while another still writes
        found = checkpoint.read(
            self.path,
            recipe_digest=self.recipe.digest(),
            data_digest=self.data_digest,
            processes=self.group.size,
            extends=extends,
        )
        if found is not None:
            self.progress = Progress(**found.progress)
            if found.recipe_digest != self.recipe.digest():
                self.progress.finished, self.progress.extended_at = False, self.progress.epoch
            # Older checkpoints count the epochs of each stage from 1.
            self.history = [
                EpochRecord(**{**record, "epoch": number, "head_only": self.stage.head_only})
                for number, record in enumerate(found.history, self.first_epoch + 1)
            ]
            self.losses = _with_accuracy(found.losses).to(self.device)
            self.learner.restore(found.learner)
            self.best_weights = found.best_weights
            # A copy, because torch crashes on a state that is a view of a larger tensor.
            torch.set_rng_state(found.cpu_random[self.group.rank].clone())
            if found.cuda_random is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(found.cuda_random[self.group.rank].clone(), self.device)
        self._check_agreement()

    def _check_agreement(self) -> None:
        position: Tensor = torch.tensor([self.progress.epoch, self.progress.step])
        positions = self.group.gather(position)  # (processes, 2)
        if not bool((positions == positions[0]).all()):
            raise CheckpointError(
                f"the processes of this run read different checkpoints from {self.path}: "
                "--run-dir must be a directory that all of them share"
            )


def _with_accuracy(losses: Tensor) -> Tensor:
    """(steps,) of an older checkpoint, which has no accuracy -> (steps, 2)."""
    return losses if losses.dim() == 2 else torch.stack([losses, torch.full_like(losses, math.nan)], dim=1)  # noqa: PLR2004
