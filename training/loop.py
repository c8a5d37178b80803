"""The bookkeeping of training: epochs, early stopping, the best weights, checkpoints, leaving when asked.

The mathematics is in steps.py. Every random draw comes from torch's generators, whose state the checkpoint
keeps, or is a pure function of seed and epoch: so a run that was killed goes on bit for bit.
"""

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import Checkpoint, Progress
from training.data import Dataset
from training.data.augmentation import shift_randomly
from training.data.splits import Split
from training.display import Display
from training.errors import Diverged
from training.history import EpochRecord
from training.interrupts import Interrupts
from training.networks import Network, build
from training.recipe import Recipe
from training.schedule import learning_rate
from training.steps import epoch_order, measure, steps_per_epoch, train_step


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves: the network with its best weights, and how it came to them."""

    network: Network
    history: tuple[EpochRecord, ...]
    best_epoch: int
    data_digest: str


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    device: torch.device,
    checkpoint_path: Path,
    display: Display,
    interrupts: Interrupts,
) -> Trained:
    """Train to the end, from the checkpoint where there is one.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another run.
        Diverged: the loss is no longer a number.
        Interrupted: somebody asked the job to stop; the checkpoint is written.
    """
    loop = _Loop(recipe, dataset, device, checkpoint_path)
    loop.restore()
    with display.training(recipe.training.epochs * loop.steps, recipe.training.batch_size):
        while not loop.progress.finished:
            loop.run_epoch(display, interrupts)
    loop.network.load_state_dict(loop.best_weights)
    loop.network.eval()
    return Trained(loop.network, tuple(loop.history), loop.progress.best_epoch, loop.data_digest)


class _Loop:
    """The state of one run: a class because a checkpoint must see and restore all of it."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device, path: Path) -> None:
        torch.manual_seed(recipe.training.seed)
        self.recipe = recipe
        self.device = device
        self.path = path
        self.data_digest = dataset.digest()
        self.network = build(recipe.network, recipe.geometry, len(dataset.labels)).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=recipe.training.learning_rate)
        self.images, self.labels = _tensors(dataset.train, device)
        self.validation = _tensors(dataset.validation, device)
        self.steps = steps_per_epoch(len(dataset.train), recipe.training.batch_size)
        self.progress = Progress()
        self.history: list[EpochRecord] = []
        self.best_weights = copy.deepcopy(self.network.state_dict())

    def run_epoch(self, display: Display, interrupts: Interrupts) -> None:
        """Finish the epoch under way, judge it, and save."""
        self.network.train()
        order = epoch_order(len(self.labels), self.recipe.training.seed, self.progress.epoch).to(self.device)
        while self.progress.step < self.steps:
            self._run_step(order)
            display.step_done(self.progress.epoch * self.steps + self.progress.step)
            self._leave_if_asked(interrupts)
            if self.progress.step % self.recipe.training.checkpoint_interval_steps == 0:
                self.save()
        record = self._finish_epoch()
        display.epoch_done(record, is_best=self.progress.best_epoch == record.epoch)
        self.save()

    def _run_step(self, order: Tensor) -> None:
        recipe, progress = self.recipe.training, self.progress
        began_s = time.perf_counter()
        batch = order[progress.step * recipe.batch_size : (progress.step + 1) * recipe.batch_size]  # (B,)
        images = shift_randomly(self.images[batch], recipe.max_shift_px, self.recipe.geometry.background)
        loss = train_step(self.network, self.optimizer, images, self.labels[batch], self._rate())
        progress.loss_sum += float(loss)
        progress.step += 1
        progress.epoch_seconds += time.perf_counter() - began_s
        if not math.isfinite(progress.loss_sum):
            raise Diverged(
                f"the loss is {float(loss)} in epoch {progress.epoch + 1}, step {progress.step}: "
                f"training.learning_rate {recipe.learning_rate} may be too high"
            )

    def _rate(self) -> float:
        done = self.progress.epoch * self.steps + self.progress.step
        return learning_rate(done, self.recipe.training.epochs * self.steps, self.recipe.training)

    def _finish_epoch(self) -> EpochRecord:
        progress = self.progress
        validation_loss, validation_accuracy = measure(self.network, *self.validation)
        progress.epoch += 1
        record = EpochRecord(
            epoch=progress.epoch,
            train_loss=progress.loss_sum / self.steps,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            images_per_s=self.steps * self.recipe.training.batch_size / progress.epoch_seconds,
            seconds=progress.epoch_seconds,
        )
        self.history.append(record)
        if validation_loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = validation_loss, progress.epoch
            self.best_weights = copy.deepcopy(self.network.state_dict())
        progress.step, progress.loss_sum, progress.epoch_seconds = 0, 0.0, 0.0
        patience_is_over = progress.epoch - progress.best_epoch >= self.recipe.training.patience
        progress.finished = patience_is_over or progress.epoch == self.recipe.training.epochs
        return record

    def _leave_if_asked(self, interrupts: Interrupts) -> None:
        if interrupts.received is not None:
            self.save()
            interrupts.leave_if_asked(
                f"saved in epoch {self.progress.epoch + 1} after step {self.progress.step}"
            )

    def save(self) -> None:
        """Write the checkpoint."""
        on_cuda = self.device.type == "cuda"
        state = Checkpoint(
            recipe_digest=self.recipe.digest(),
            data_digest=self.data_digest,
            progress=asdict(self.progress),
            history=[asdict(record) for record in self.history],
            network=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            best_weights=self.best_weights,
            cpu_random=torch.get_rng_state(),
            cuda_random=torch.cuda.get_rng_state(self.device) if on_cuda else None,
        )
        checkpoint.save(state, self.path)

    def restore(self) -> None:
        """Take up the checkpoint, where there is one."""
        found = checkpoint.read(self.path, recipe_digest=self.recipe.digest(), data_digest=self.data_digest)
        if found is None:
            return
        self.progress = Progress(**found.progress)
        self.history = [EpochRecord(**record) for record in found.history]
        self.network.load_state_dict(found.network)
        self.optimizer.load_state_dict(found.optimizer)
        self.best_weights = found.best_weights
        torch.set_rng_state(found.cpu_random)
        if found.cuda_random is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(found.cuda_random, self.device)


def _tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, H, W, C) uint8 and labels (N,) int64, whole on the device."""
    return torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device)
