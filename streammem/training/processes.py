"""The processes of one training run: their ranks, barriers, and averages of losses and gradients.

    with join_processes(device) as (group, own_device):
        train_stage(stage, schedule, out, group=group)

With one process, the usual case, nothing here has an effect. Each process has all the weights and
draws a batch of its own; all see one file system.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from streammem.errors import BackboneError, ConfigError, install_command

LONGEST_WAIT = timedelta(hours=24)  # the first may encode a large set; a crash ends all at once


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process's place among the processes of a run.

    Attributes:
        rank: from 0; the first writes files and shows progress.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextmanager
    def first_process_first(self) -> Iterator[None]:
        """Run the block in the first process, then in the others."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def mean(self, value: Tensor) -> float:
        """Return the mean of the processes' values."""
        if self.size == 1:
            return float(value)
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return float(total) / self.size

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes.

        A missing gradient counts as zero. Where no process has one, the parameter keeps none, so
        that an optimiser skips it, as it does in a single process.

        Args:
            parameters: the same, in the same order, in every process; on one device.
        """
        if self.size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([*(g.flatten().float() for g in grads), there.to(grads[0].device)])
        torch.distributed.all_reduce(flat)
        sizes = [p.numel() for p in parameters]
        *means, counts = (flat / self.size).split([*sizes, len(parameters)])
        for parameter, mean, known in zip(parameters, means, counts.tolist(), strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype) if known else None

    @torch.no_grad()
    def share(self, module: nn.Module) -> None:
        """Copy the first process's parameters and buffers to all processes."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.data, 0)


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_processes(device: str | None) -> Iterator[tuple[ProcessGroup, str]]:
    """Join the processes of ``accelerate launch`` or ``torchrun``; one process without these.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. None is ``cpu``, or in several processes
            what these were launched for. Of several processes each takes its own ``cuda``.

    Yields:
        The group and this process's device.

    Raises:
        ConfigError: several processes on one device.
        BackboneError: several processes without accelerate.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield SINGLE_PROCESS, device or "cpu"
        return
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: several processes take cpu, or cuda for one GPU each"
        )
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise BackboneError(
            f"several processes need accelerate; run: {install_command('train')}"
        ) from error
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    # Accelerate numbers even the CPU.
    own = "cpu" if state.device.type == "cpu" else str(state.device)
    yield ProcessGroup(state.process_index, state.num_processes), own
    state.destroy_process_group()  # not after a failure: it would wait for the others
