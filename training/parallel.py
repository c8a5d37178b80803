"""Several processes that train one network, as torchrun starts them: gloo between CPUs, NCCL between GPUs.

Each process has all the data and takes its rows of every batch; gradients are summed once a step.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from training.errors import ProcessLost


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of this run, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """One process writes, speaks and publishes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of a batch."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, values: Tensor) -> Tensor:
        """Replace by the sum over all processes, the same to the bit on each.

        Raises:
            ProcessLost: another process is gone.
        """
        if self.size > 1:
            with _losing_processes():
                distributed.all_reduce(values)
        return values

    def sum_many_(self, values: Sequence[Tensor]) -> None:
        """The same for many tensors of one type, in one message."""
        if self.size > 1:
            flat = torch.cat([value.reshape(-1) for value in values])
            self.sum_(flat)
            parts = flat.split_with_sizes([value.numel() for value in values])
            torch._foreach_copy_(
                list(values), [part.view_as(value) for part, value in zip(parts, values, strict=True)]
            )

    def gather(self, value: Tensor) -> Tensor:
        """Every process's value, (size, ...), on each."""
        if self.size == 1:
            return value[None]
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        with _losing_processes():
            distributed.all_gather(gathered, value)
        return torch.stack(gathered)

    def wait(self) -> None:
        """Go on when all have come here."""
        self.sum_(torch.zeros(1))


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """Join the group that torchrun's environment describes; alone where there is none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _losing_processes():
        distributed.init_process_group(backend)
    try:
        yield Group(
            rank=distributed.get_rank(),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
        )
    finally:
        distributed.destroy_process_group()


@contextmanager
def _losing_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo and NCCL give one line on the socket, and much on their own insides.
        raise ProcessLost(
            "another process of this run is gone, so this one ends too; the last checkpoint is kept: "
            f"start all of them again with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
