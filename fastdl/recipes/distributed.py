"""Several processes under torchrun, or one alone, behind the same few calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Group:
    """The processes of this run: `rank` of `size`, and the device of this one."""

    def __init__(self, rank: int, size: int, device: torch.device, control: dist.ProcessGroup | None) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._control = control

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to train: gradients are averaged over the processes."""
        if self.size == 1:
            return model
        device_ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch: every size-th row. Parts may differ by one and may be empty."""
        return rows[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self._control if values.device.type == "cpu" else None)
        return total

    def highest(self, value: int) -> int:
        """The highest value any process has. Goes through the host: no device waits for it."""
        if self.size == 1:
            return value
        highest = torch.tensor(value)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self._control)
        return int(highest)

    def gather(self, values: Tensor) -> list[Tensor]:
        """The CPU tensor of every process, by rank, on each; all have one shape."""
        if self.size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values, group=self._control)
        return gathered

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)

    def leave(self) -> None:
        """The end of all calls.

        gloo's threads let go of a call's tensors after the call has returned, and a process that is ending
        by then aborts: such a tensor's end takes the interpreter's lock. They end with the last reference to
        their process group. torch._dynamo, which optimizers import, keeps the default one; that is
        DistributedDataParallel's, which gives it no tensor of Python's.
        """
        self._control = None


@contextmanager
def processes(device: str) -> Iterator[Group]:
    """The group torchrun started this process in, or a group of one. `device` "auto" is CUDA where there is one.

    Raises:
        ValueError: more processes on this machine than CUDA devices.
    """
    if not dist.is_torchelastic_launched():
        yield Group(0, 1, _device(device, 0), None)
        return
    own = _device(device, dist.get_node_local_rank())
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    group = Group(dist.get_rank(), dist.get_world_size(), own, dist.new_group(backend="gloo"))
    try:
        yield group
    finally:
        dist.destroy_process_group()
        group.leave()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda" or device.index is not None:
        return device
    if local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank} has no device: this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)
