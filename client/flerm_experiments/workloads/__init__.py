"""Workloads: families of models with their data. `flerm train NAME` runs one.

Most workloads download nothing. The workloads on CIFAR-10, WikiText-103, Cold French Law and
MathPile load their data, and adapters load GPT-2 or Llama-3.2-1B, from the Hugging Face Hub or from
a folder of copies (see `hub`). To add a workload, subclass `Workload` and put an instance into
`WORKLOADS`.
"""

from __future__ import annotations

from flerm_core.errors import NotFound
from flerm_experiments.workloads.base import Scale, Workload
from flerm_experiments.workloads.corpus import BYTE_PAIRS
from flerm_experiments.workloads.decoder import NORMS, DecoderOnText
from flerm_experiments.workloads.digits_data import DIGITS
from flerm_experiments.workloads.hub import CIFAR10, hub_text
from flerm_experiments.workloads.lora import ARCHITECTURES, LoRAOnText
from flerm_experiments.workloads.mlp import MLPOnImages
from flerm_experiments.workloads.resmlp import ResMLPOnImages

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        ResMLPOnImages(DIGITS),
        MLPOnImages(DIGITS, linear=False),
        MLPOnImages(DIGITS, linear=True),
        *(DecoderOnText(norm, affine=affine) for affine in (False, True) for norm in NORMS),
        *(DecoderOnText(norm, text=BYTE_PAIRS) for norm in NORMS),
        *(LoRAOnText(shape) for shape in ARCHITECTURES),
    )
}
FETCHED: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        ResMLPOnImages(CIFAR10),
        *(DecoderOnText(norm, text=hub_text("wikitext", "gpt2")) for norm in NORMS),
        *(
            LoRAOnText(shape, hub_text(name, shape))
            for shape in ARCHITECTURES
            for name in ("law", "math")
        ),
    )
}
"""The workloads that need a network or copies of their data and models."""
WORKLOADS |= FETCHED


def workload_named(name: str) -> Workload:
    """The workload called `name`. Raises `NotFound` with all names for an unknown one."""
    try:
        return WORKLOADS[name]
    except KeyError:
        raise NotFound(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}") from None


__all__ = ["FETCHED", "WORKLOADS", "Scale", "Workload", "workload_named"]
