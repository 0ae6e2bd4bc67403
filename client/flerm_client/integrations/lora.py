"""LoRA: at which step both adapter matrices move the outputs."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

_ADAPTERS_MOVED = 6


def first_step(model: nn.Module) -> int:
    """The first step, counted from 1, whose update of every trainable tensor moves the outputs: `start` for this model.

    6 where a LoRA B is 0, as PEFT begins it: A then has no effect and no gradient before B has moved, and the paper, too, sets
    the rates of adapters at the sixth step (Appendix A.3). 1 for all others.
    """
    adapters = [p for name, p in model.named_parameters() if p.requires_grad and _is_b(name)]
    return _ADAPTERS_MOVED if any(not _largest(p) for p in adapters) else 1


def _is_b(name: str) -> bool:
    return any(part in ("lora_B", "lora_embedding_B") for part in name.split("."))


def _largest(parameter: nn.Parameter) -> float:
    with torch.no_grad():
        largest = parameter.abs().max()
        return float(largest.full_tensor() if isinstance(largest, DTensor) else largest)
