"""An exponential moving average of the weights, which is evaluated and published in their place."""

import copy

import torch
from torch import Tensor

from training.networks import Network

_YOUNG = 10  # steps; warms up the decay, so that the average forgets the random initial weights


class WeightAverage:
    """A copy of a network whose weights are the moving average of the network's."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self._decay = decay
        pairs = list(zip(_values(self.network), _values(network), strict=True))
        self._floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self._others = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Update the average, with batch norm's statistics.

        Args:
            steps: number of finished steps, from 1.
        """
        decay = min(self._decay, (1 + steps) / (_YOUNG + steps))
        mine, theirs = zip(*self._floats, strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        if self._others:
            counters, sources = zip(*self._others, strict=True)
            torch._foreach_copy_(counters, sources)


def _values(network: Network) -> list[Tensor]:
    return list(network.state_dict(keep_vars=True).values())
