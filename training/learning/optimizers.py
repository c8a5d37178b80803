"""Builds a recipe's optimizer, with separate rates for weights, biases and the head; includes Muon."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from training.networks import Network
from training.recipe import TrainingRecipe

RATE_FACTOR = "rate_factor"  # key of a parameter group: multiplies the learning rate

# The quintic Newton-Schulz iteration with the coefficients of Jordan (2024): steep at zero, so that three
# steps bring even small singular values near 1. They need not be exactly 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 3
_FILTER_AXES = 4


def make_optimizer(network: Network, recipe: TrainingRecipe, *, capturable: bool = False) -> Optimizer:
    """Build the recipe's optimizer for all trainable parameters.

    Args:
        network: the network, already on its device.
        recipe: the optimizer's kind and settings.
        capturable: keep rates and step counts in GPU memory, so that steps can be captured as a CUDA graph.
    """
    groups = _groups(network, recipe)
    if capturable:
        for group in groups:
            group["lr"] = torch.zeros((), device=next(network.parameters()).device)
    if recipe.optimizer == "muon":
        return Muon(groups, rate=recipe.learning_rate, momentum=recipe.momentum)
    if recipe.optimizer == "sgd" and capturable:
        return NesterovSGD(groups, rate=recipe.learning_rate, momentum=recipe.momentum)
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    kind = AdamW if recipe.optimizer == "adamw" else Adam
    return kind(groups, lr=recipe.learning_rate, capturable=capturable)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate, times each group's factor."""
    for group in optimizer.param_groups:
        own = rate * group[RATE_FACTOR]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of another optimizer of the same recipe, capturable or not, on any device."""
    saved = state["param_groups"]
    groups = [
        {**own, "params": group["params"]} for own, group in zip(optimizer.param_groups, saved, strict=True)
    ]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _groups(network: Network, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """Split the parameters into weights, biases with norms, and the head's weights; only weights decay."""
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    matrices = [(name, value) for name, value in trained if value.dim() > 1]
    head = [value for name, value in matrices if name.startswith("head.")]
    weights = [value for name, value in matrices if not name.startswith("head.")]
    biases = [value for _, value in trained if value.dim() <= 1]
    decay = recipe.weight_decay
    return [
        {"params": weights, "weight_decay": decay, RATE_FACTOR: 1.0},
        {"params": biases, "weight_decay": 0.0, RATE_FACTOR: recipe.bias_rate_factor},
        {"params": head, "weight_decay": decay, RATE_FACTOR: recipe.head_rate_factor},
    ]


class NesterovSGD(Optimizer):
    """SGD with Nesterov momentum, whose learning rate may be a tensor.

    The base of Muon. It also replaces torch.optim.SGD in captured steps, since most implementations of that
    read a tensor rate back from the GPU.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, rate: float, momentum: float) -> None:
        super().__init__(groups, {"lr": rate, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        _apply_update(parameter, self._with_momentum(parameter, gradient, group["momentum"]), group["lr"])

    def _with_momentum(self, parameter: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)  # Nesterov


class Muon(NesterovSGD):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for convolutions; SGD for the rest.

    The momentum of each filter bank, as a matrix (maps, channels * height * width), is orthogonalised before
    the update. The norm of the filter bank is kept at the square root of its maps: the rate is an angle.
    """

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter.dim() != _FILTER_AXES:
            super()._update(parameter, gradient, group)
            return
        update = self._with_momentum(parameter, gradient, group["momentum"])
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        _apply_update(parameter, orthogonalise(update.reshape(len(update), -1)).view_as(update), group["lr"])


def _apply_update(parameter: nn.Parameter, update: Tensor, rate: float | Tensor) -> None:
    if isinstance(rate, Tensor):  # as `alpha` it would be read back from the GPU
        parameter.sub_(update * rate)
    else:
        parameter.add_(update, alpha=-rate)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix by Newton-Schulz iteration: (M, N) -> (M, N)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        a, b, c = _QUINTIC
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.T if tall else x
    return orthogonal
