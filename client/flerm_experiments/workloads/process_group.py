"""The process group of a training run: one process alone, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from flerm_core.measure.distributed.gloo_lifetime import retain_group


@dataclass(frozen=True, slots=True)
class TrainingProcessGroup:
    """This process's rank, the number of ranks, and the device that this process trains on."""

    rank: int
    world: int
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` on the device.

        With several ranks it is wrapped in DDP, which gives every rank the weights of rank 0.
        """
        model = model.to(self.device)
        if self.world == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the ranks, on every rank. `value` is overwritten with it."""
        if self.world > 1:
            distributed.all_reduce(value)
            value /= self.world
        return value

    def gather(self, text: str) -> list[str]:
        """Every rank's `text`, in rank order, on every rank."""
        if self.world == 1:
            return [text]
        texts: list[str] = [""] * self.world
        distributed.all_gather_object(texts, text)
        return texts


@contextmanager
def process_group() -> Iterator[TrainingProcessGroup]:
    """Joins the process group that torchrun's environment describes, if there is one.

    The ranks train on CUDA devices where each rank of this host has one of its own, otherwise on
    the CPU. The backend is NCCL for CUDA devices if torch has it, otherwise gloo. The process
    leaves the group at the end of the `with` block, also when the block raises.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= local_world
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield TrainingProcessGroup(0, 1, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda and distributed.is_nccl_available() else "gloo")
    retain_group()
    try:
        yield TrainingProcessGroup(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
