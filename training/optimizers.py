"""The optimizers of the recipes, with a rate of its own for each kind of parameter; and Muon."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from training.networks import Network
from training.recipe import TrainingRecipe

RATE_FACTOR = "rate_factor"  # key of a group: of the learning rate

# Newton-Schulz' quintic with the coefficients of Jordan (2024): steepest at zero, so that in three steps
# small singular values come near 1 too. They need not be 1 exactly.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 3
_FILTER_AXES = 4


def make_optimizer(network: Network, recipe: TrainingRecipe) -> Optimizer:
    """The recipe's optimizer of all trainable parameters."""
    groups = _groups(network, recipe)
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    if recipe.optimizer == "muon":
        return Muon(groups, rate=recipe.learning_rate, momentum=recipe.momentum)
    kind = AdamW if recipe.optimizer == "adamw" else Adam
    return kind(groups, lr=recipe.learning_rate)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its part of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_FACTOR]


def _groups(network: Network, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """Weights, biases and norms, and the head's weights; only weights decay."""
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    head = [value for name, value in trained if name == "head.weight"]
    weights = [value for name, value in trained if value.dim() > 1 and name != "head.weight"]
    biases = [value for _, value in trained if value.dim() <= 1]
    decay = recipe.weight_decay
    return [
        {"params": weights, "weight_decay": decay, RATE_FACTOR: 1.0},
        {"params": biases, "weight_decay": 0.0, RATE_FACTOR: recipe.bias_rate_factor},
        {"params": head, "weight_decay": decay, RATE_FACTOR: recipe.head_rate_factor},
    ]


class Muon(Optimizer):
    """Momentum whose matrix is made orthogonal before it is applied, for filters; plain SGD for the rest.

    Each filter bank is a matrix (maps, channels * height * width); its length is kept at the square root of
    its maps, so that the rate is an angle. After Jordan (2024), https://kellerjordan.github.io/posts/muon.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, rate: float, momentum: float) -> None:
        super().__init__(groups, {"lr": rate, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, parameter.grad, group)

    def _change(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(gradient))
        is_filter = parameter.dim() == _FILTER_AXES
        if group["weight_decay"] and not is_filter:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        buffer.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"])  # Nesterov's
        if is_filter:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            update = orthogonalised(update.reshape(len(update), -1)).view_as(update)
        parameter.add_(update, alpha=-group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """Near the closest matrix whose singular values are all 1, without computing them: (M, N) -> (M, N)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        a, b, c = _QUINTIC
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.T if tall else x
    return orthogonal
