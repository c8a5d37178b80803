"""Several processes that train one network, as torchrun starts them: gloo between CPUs, NCCL between GPUs.

Each process has all the data and takes its rows of every batch; gradients are summed once a step.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from serving.errors import UsageError
from training.errors import ProcessLost


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of this run, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine
    local_size: int = 1
    connected: bool = False  # values travel between processes; else this one is alone

    @property
    def is_main(self) -> bool:
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
        if self.connected:
            with _reporting_lost_processes():
                distributed.all_reduce(values)
        return values

    def sum_many_(self, values: Sequence[Tensor]) -> None:
        """The same for many tensors of one type, in one message."""
        if self.connected:
            flat = torch.cat([value.reshape(-1) for value in values])
            self.sum_(flat)
            parts = flat.split_with_sizes([value.numel() for value in values])
            torch._foreach_copy_(
                list(values), [part.view_as(value) for part, value in zip(parts, values, strict=True)]
            )

    def gather(self, value: Tensor) -> Tensor:
        """Every process's value, (size, ...), on each."""
        if not self.connected:
            return value[None]
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        with _reporting_lost_processes():
            distributed.all_gather(gathered, value)
        return torch.stack(gathered)

    def barrier(self) -> None:
        """Go on when all have come here."""
        self.sum_(torch.zeros(1))

    def leave(self) -> None:
        """End the group: each process calls this when nothing is left to sum.

        NCCL ends only when all processes end it: one that left late would keep the others waiting.
        """
        if self.connected and distributed.is_initialized():
            distributed.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()


def from_torchrun() -> ProcessGroup:
    """This process's place among those of torchrun's environment, not joined yet; alone where there is none.

    Raises:
        UsageError: the environment names several processes, but not which of them this is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE_PROCESS
    if "RANK" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {size}, but RANK is not set: start the processes by torchrun")
    return ProcessGroup(
        rank=int(os.environ["RANK"]),
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
    )


@contextmanager
def join(
    place: ProcessGroup, device: torch.device, *, even_if_single: bool = False
) -> Iterator[ProcessGroup]:
    """Join the group of which this process has a place.

    Args:
        place: of this process, as `from_torchrun` gives it.
        device: on which it trains.
        even_if_single: make a real group of one process too, whose sums go through gloo or NCCL.

    Raises:
        UsageError: two processes have one GPU.
        ProcessLost: another process is gone.
    """
    if place.size == 1 and not even_if_single:
        yield place
        return
    _start(place, device)
    group = replace(place, connected=True)
    try:
        if device.type == "cuda":
            reject_shared_gpus(group.gather(_identity(device)))
        yield group
    except BaseException:
        if device.type == "cuda":
            # The others may wait in a sum that never comes, and NCCL's orderly end would wait for them.
            distributed.distributed_c10d._abort_process_group()  # noqa: SLF001 - there is no public form
        raise
    finally:
        group.leave()


def reject_shared_gpus(identities: Tensor) -> None:
    """NCCL would refuse them too, in words of its own.

    Args:
        identities: (size, 32) uint8, equal for the same GPU.

    Raises:
        UsageError: two are equal.
    """
    rows = [bytes(row) for row in identities.tolist()]
    for rank, row in enumerate(rows):
        if row in rows[:rank]:
            raise UsageError(
                f"processes {rows.index(row)} and {rank} of {len(rows)} share a GPU, and NCCL needs one for "
                f"each: start at most {len(set(rows))} processes with --device cuda, or use --device cpu"
            )


def _start(place: ProcessGroup, device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        # NCCL takes the current device. It connects at its first sum: until then gloo alone speaks, so two
        # processes with one GPU can say so.
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _reporting_lost_processes():
        if place.size == 1:  # no environment is needed, and no port
            store = distributed.HashStore()  # type: ignore[attr-defined]
            distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            distributed.init_process_group(backend)


def _identity(device: torch.device) -> Tensor:
    """(32,) uint8, made of the GPU's UUID: its index would not do, since each process may see other GPUs."""
    digest = hashlib.sha256(str(torch.cuda.get_device_properties(device).uuid).encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


@contextmanager
def _reporting_lost_processes() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError too, but of this process
        raise
    except RuntimeError as error:
        # gloo and NCCL give one line on the socket, and much on their own insides.
        raise ProcessLost(
            "another process of this run is gone, so this one ends too; the last checkpoint is kept: "
            f"start all of them again with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
