"""Batch norm over the whole batch where several processes share it, on a CPU too.

torch.nn.SyncBatchNorm is for GPUs alone. Without it each process would normalise by its own few images, and
two processes would learn something else than one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.devices.process_group import ProcessGroup


class _Sum(torch.autograd.Function):
    """The sum over all processes, forward and back."""

    @staticmethod
    def forward(context: Any, values: Tensor, group: ProcessGroup) -> Tensor:  # noqa: ANN401 - torch gives it no type
        context.group = group
        return group.sum_(values.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        group: ProcessGroup = context.group
        return group.sum_(gradient.clone()), None


class SyncBatchNorm(_BatchNorm):
    """A batch norm that takes over another one's parameters and statistics."""

    def __init__(self, norm: _BatchNorm, group: ProcessGroup) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """Rows (N, C) and planes (N, C, H, W) are both welcome."""

    def forward(self, values: Tensor) -> Tensor:
        """(N, C) or (N, C, H, W), normalised by the statistics of all processes' values."""
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
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        shape = [1, -1, *[1] * (values.dim() - 2)]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = wide * scale.view(shape) + (self.bias - mean * scale).view(shape)
        return normalised

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, by the unbiased variance as torch does."""
        momentum = 0.1 if self.momentum is None else self.momentum
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            raise AssertionError("no network here has a batch norm without statistics. This is a bug.")
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def convert_sync_batch_norm(network: nn.Module, group: ProcessGroup) -> None:
    """Replace every batch norm of the network; names, parameters and statistics stay."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, SyncBatchNorm(child, group))
