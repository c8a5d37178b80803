"""A network with its optimizer and averaged weights, updated step by step. Independent of epochs."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.data.storage.device_images import DeviceImages
from training.devices.cuda_graphs import CudaGraphCapturer, GraphedStep, Step
from training.devices.kernels import uses_fast_kernels
from training.devices.process_group import ProcessGroup
from training.devices.sync_batch_norm import convert_sync_batch_norm
from training.learning.averaging import WeightAverage
from training.learning.optimizers import make_optimizer, restore_optimizer, set_rate
from training.learning.steps import Forward, Objective, class_weights, train_step
from training.networks import Network
from training.recipe import Recipe

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


class Learner:
    """Network, optimizer and averaged weights: updated together by a step, saved together in a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        network: Network,
        images: Tensor | DeviceImages,
        labels: Tensor,
        group: ProcessGroup,
    ) -> None:
        self.network = _prepared(network, recipe, images, group)
        training = recipe.training
        # Collectives are not captured: a process that waits for another must be able to time out.
        graphs = training.cuda_graphs and uses_fast_kernels(images.device) and not group.connected
        self.optimizer = make_optimizer(self.network, training, capturable=graphs)
        self.average = WeightAverage(self.network, training.averaging) if training.averaging else None
        # `self.network` stays unwrapped: torch.compile's wrapper changes the names of the weights.
        forward: Forward = torch.compile(self.network) if training.compile else self.network
        weighted = training.class_balance == "weights"
        objective = Objective(
            label_smoothing=training.label_smoothing,
            class_weights=class_weights(labels, int(labels.max()) + 1) if weighted else None,
            max_gradient_norm=training.max_gradient_norm,
            autocast=_PRECISIONS[training.precision],
            group=group,
        )
        # A partial, not a bound method: a reference cycle would keep a CUDA graph's memory after training.
        self._step: Step = partial(_step, forward, self.optimizer, objective)
        if graphs:
            self._step = GraphedStep(self._step, CudaGraphCapturer(images.device))

    @property
    def eval_network(self) -> Network:
        """The network to evaluate and publish: the averaged one, if the recipe averages."""
        return self.network if self.average is None else self.average.network

    def step(self, images: Tensor, targets: Tensor, *, rate: float, steps: int, batch: int) -> Tensor:
        """Run one training step.

        Args:
            images: (b, H, W, C), this process's rows of the batch, uint8 or float32, 0..255.
            targets: (b,) int64 labels, or (b, K) float32 probabilities.
            rate: learning rate.
            steps: number of steps of the whole run, including this one.
            batch: number of images of all processes.

        Returns: (2,) float32, the mean loss and the accuracy before the step.
        """
        self.network.train()
        set_rate(self.optimizer, rate)
        result = self._step(images, targets, batch)
        if self.average is not None:
            self.average.update(steps)
        return result

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.network.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.network.load_state_dict(state["network"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])


def _step(  # noqa: PLR0917 - the first three are bound by partial
    forward: Forward,
    optimizer: Optimizer,
    objective: Objective,
    images: Tensor,
    targets: Tensor,
    batch: int,
) -> Tensor:
    return train_step(forward, optimizer, images, targets, objective, batch=batch)


def _prepared(
    network: Network, recipe: Recipe, images: Tensor | DeviceImages, group: ProcessGroup
) -> Network:
    network.initialise_from_data(lambda count: images[:count].cpu())
    if recipe.training.channels_last:
        network.use_memory_format(torch.channels_last)
    if group.connected:
        convert_sync_batch_norm(network, group)
    return network.to(images.device)
