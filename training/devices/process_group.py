"""Data-parallel training by several processes, started by torchrun: gloo between CPUs, NCCL between GPUs.

Each process loads all data and trains on a part of each batch. Gradients are summed once per step.
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
    """The processes of this run, and the rank of this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # rank among the processes of this machine
    local_size: int = 1
    connected: bool = False  # whether torch's process group exists; without it, the collectives do nothing

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which alone writes files, shows progress and publishes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return the slice of `count` rows that this process handles."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over all processes in place (all-reduce); every process gets the same bits.

        Raises:
            ProcessLost: another process exited.
        """
        if self.connected:
            with _reporting_lost_processes():
                distributed.all_reduce(values)
        return values

    def sum_many_(self, values: Sequence[Tensor]) -> None:
        """Sum many tensors of one dtype in place, in a single message."""
        if self.connected:
            flat = torch.cat([value.reshape(-1) for value in values])
            self.sum_(flat)
            parts = flat.split_with_sizes([value.numel() for value in values])
            torch._foreach_copy_(
                list(values), [part.view_as(value) for part, value in zip(parts, values, strict=True)]
            )

    def gather(self, value: Tensor) -> Tensor:
        """Collect the values of all processes in every process (all-gather): (size, ...)."""
        if not self.connected:
            return value[None]
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        with _reporting_lost_processes():
            distributed.all_gather(gathered, value)
        return torch.stack(gathered)

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        self.sum_(torch.zeros(1))

    def leave(self) -> None:
        """Destroy the group. Each process must call this after its last collective.

        NCCL's shutdown waits for all processes, so a late one would block the others.
        """
        if self.connected and distributed.is_initialized():
            distributed.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()


def from_torchrun() -> ProcessGroup:
    """Read this process's rank from torchrun's environment; without it, return a single process.

    Raises:
        UsageError: WORLD_SIZE is set, but RANK is not.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE_PROCESS
    if "RANK" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {size}, but RANK is not set: start the processes with torchrun")
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
    """Connect to the other processes within the context.

    Args:
        place: the rank of this process, as `from_torchrun` returns it.
        device: device of this process.
        even_if_single: also create a group for a single process, whose sums then use gloo or NCCL.

    Raises:
        UsageError: two processes share a GPU.
        ProcessLost: another process exited.
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
            # The others may wait in a collective that never completes, and NCCL's regular shutdown would wait
            # for them.
            distributed.distributed_c10d._abort_process_group()  # noqa: SLF001 - no public equivalent
        raise
    finally:
        group.leave()


def reject_shared_gpus(identities: Tensor) -> None:
    """Check that no two processes share a GPU, with a clearer message than NCCL's.

    Args:
        identities: (size, 32) uint8 per process; equal rows mean the same GPU.

    Raises:
        UsageError: two processes share a GPU.
    """
    rows = [bytes(row) for row in identities.tolist()]
    for rank, row in enumerate(rows):
        if row in rows[:rank]:
            raise UsageError(
                f"processes {rows.index(row)} and {rank} of {len(rows)} share a GPU, but each needs its "
                f"own: start at most {len(set(rows))} processes with --device cuda, or use --device cpu"
            )


def _start(place: ProcessGroup, device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        # NCCL uses the current device. It connects at its first collective; before that, only gloo is used,
        # so that shared GPUs can be detected first.
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _reporting_lost_processes():
        if place.size == 1:  # needs no environment variables and no port
            store = distributed.HashStore()  # type: ignore[attr-defined]
            distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            distributed.init_process_group(backend)


def _identity(device: torch.device) -> Tensor:
    """Hash the GPU's UUID: (32,) uint8. Not its index, because processes may see different GPUs."""
    digest = hashlib.sha256(str(torch.cuda.get_device_properties(device).uuid).encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


@contextmanager
def _reporting_lost_processes() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:  # also a RuntimeError, but of this process
        raise
    except RuntimeError as error:
        # The first line of gloo's and NCCL's messages names the socket; the rest is internals.
        raise ProcessLost(
            "another process of this run exited, so this one exits too. The last checkpoint is kept: "
            f"restart all processes with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
