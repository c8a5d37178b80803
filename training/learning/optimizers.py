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


def make_optimizer(network: Network, recipe: TrainingRecipe, *, capturable: bool = False) -> Optimizer:
    """The recipe's optimizer of all trainable parameters.

    Args:
        network: on its device.
        recipe: kind and settings.
        capturable: its steps become a CUDA graph: it reads rates and counts from the GPU's memory.
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
    """Give every group its part of the rate."""
    for group in optimizer.param_groups:
        own = rate * group[RATE_FACTOR]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take up what another one of the same recipe had learned, on this one's device and in its form."""
    saved = state["param_groups"]
    groups = [
        {**own, "params": group["params"]} for own, group in zip(optimizer.param_groups, saved, strict=True)
    ]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


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


class NesterovSGD(Optimizer):
    """Gradient descent with Nesterov momentum, whose rate may lie in a tensor.

    Muon's base; and in a recorded step it stands in for torch's SGD, most of whose forms would read such a
    rate back from the GPU.
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
        return gradient.add(buffer, alpha=momentum)  # Nesterov's


class Muon(NesterovSGD):
    """Momentum whose matrix is made orthogonal before it is applied, for filters; plain SGD for the rest.

    Each filter bank is a matrix (maps, channels * height * width); its length is kept at the square root of
    its maps, so that the rate is an angle. After Jordan (2024), https://kellerjordan.github.io/posts/muon.
    """

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter.dim() != _FILTER_AXES:
            super()._update(parameter, gradient, group)
            return
        update = self._with_momentum(parameter, gradient, group["momentum"])
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        _apply_update(parameter, orthogonalise(update.reshape(len(update), -1)).view_as(update), group["lr"])


def _apply_update(parameter: nn.Parameter, update: Tensor, rate: float | Tensor) -> None:
    if isinstance(rate, Tensor):  # as `alpha` it would have to be read from the GPU
        parameter.sub_(update * rate)
    else:
        parameter.add_(update, alpha=-rate)


def orthogonalise(matrix: Tensor) -> Tensor:
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
