"""Batch norm over the whole batch of several processes, on CPUs and GPUs.

torch.nn.SyncBatchNorm supports GPUs only. With plain batch norm, each process would normalise by its few
images only, and several processes would not train the same network as one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.devices.process_group import ProcessGroup


class _Sum(torch.autograd.Function):
    """Sum over all processes, in the forward and the backward pass."""

    @staticmethod
    def forward(context: Any, values: Tensor, group: ProcessGroup) -> Tensor:  # noqa: ANN401 - torch gives it no type
        context.group = group
        return group.sum_(values.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        group: ProcessGroup = context.group
        return group.sum_(gradient.clone()), None


class SyncBatchNorm(_BatchNorm):
    """A batch norm that shares the parameters and running statistics of the layer that it replaces."""

    def __init__(self, norm: _BatchNorm, group: ProcessGroup) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """Accept both (N, C) and (N, C, H, W)."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalise (N, C) or (N, C, H, W) by the batch statistics over all processes."""
        if not self.training:
            plain: Tensor = super().forward(values)
            return plain
        axes = [axis for axis in range(values.dim()) if axis != 1]
        wide = values.float()
        count = wide.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat([wide.sum(axes), (wide * wide).sum(axes), count])  # (2 * C + 1,)
        totals = _Sum.apply(sums, self.group)  # type: ignore[no-untyped-call]
        sums, squares, count = totals.split([self.num_features, self.num_features, 1])
        mean = sums / count  # (C,)
        variance = (squares / count - mean * mean).clamp(min=0)  # (C,)
        self._update_statistics(mean.detach(), (variance * count / (count - 1)).detach())
        shape = [1, -1, *[1] * (values.dim() - 2)]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = wide * scale.view(shape) + (self.bias - mean * scale).view(shape)
        return normalised

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, with the unbiased variance as in torch.nn.BatchNorm2d."""
        momentum = 0.1 if self.momentum is None else self.momentum
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            raise AssertionError("a batch norm has no running statistics. This is a bug.")
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def convert_sync_batch_norm(network: nn.Module, group: ProcessGroup) -> None:
    """Replace all batch norms of a network in place. Names, parameters and statistics do not change."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, SyncBatchNorm(child, group))
