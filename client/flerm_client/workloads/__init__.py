"""Workloads: families of models with their data, which need no download. `flerm train NAME` runs one.

A workload of your own: subclass `Workload` and put an instance into `WORKLOADS`.
"""

from __future__ import annotations

from flerm_client.workloads.base import Scale, Workload
from flerm_client.workloads.decoder import DecoderOnBytes
from flerm_client.workloads.lora import LoRAOnProse
from flerm_client.workloads.resmlp import ResMLPOnDigits
from flerm_core.errors import NotFound

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        ResMLPOnDigits(),
        DecoderOnBytes("prenorm"),
        DecoderOnBytes("postnorm"),
        DecoderOnBytes("prenormpostmod"),
        LoRAOnProse("gpt2"),
        LoRAOnProse("llama"),
    )
}


def workload_named(name: str) -> Workload:
    """The workload called `name`. Raises `NotFound`, naming those that there are."""
    try:
        return WORKLOADS[name]
    except KeyError:
        raise NotFound(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}") from None


__all__ = ["WORKLOADS", "Scale", "Workload", "workload_named"]
