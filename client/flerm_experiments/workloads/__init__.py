"""Workloads: families of models with their data. `flerm train NAME` runs one.

Most need no download. Those on CIFAR-10, WikiText-103, Cold French Law and MathPile, and the adapters on GPT-2 and
Llama-3.2-1B, take them from the Hugging Face Hub or from a folder of copies (`hub`). A workload of your own: subclass
`Workload` and put an instance into `WORKLOADS`.
"""

from __future__ import annotations

from flerm_core.errors import NotFound
from flerm_experiments.workloads.base import Scale, Workload
from flerm_experiments.workloads.corpus import PAIRS
from flerm_experiments.workloads.decoder import NORMS, DecoderOnText
from flerm_experiments.workloads.digits_data import DIGITS
from flerm_experiments.workloads.hub import CIFAR10, text
from flerm_experiments.workloads.lora import SHAPES, LoRAOnText
from flerm_experiments.workloads.mlp import MLPOnImages
from flerm_experiments.workloads.resmlp import ResMLPOnImages

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        ResMLPOnImages(DIGITS),
        MLPOnImages(DIGITS, linear=False),
        MLPOnImages(DIGITS, linear=True),
        *(DecoderOnText(norm, affine=affine) for affine in (False, True) for norm in NORMS),
        *(DecoderOnText(norm, text=PAIRS) for norm in NORMS),
        *(LoRAOnText(shape) for shape in SHAPES),
    )
}
FETCHED: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        ResMLPOnImages(CIFAR10),
        *(DecoderOnText(norm, text=text("wikitext", "gpt2")) for norm in NORMS),
        *(LoRAOnText(shape, text(name, shape)) for shape in SHAPES for name in ("law", "math")),
    )
}
"""Those of `WORKLOADS` that need a network or copies of their data."""
WORKLOADS |= FETCHED


def workload_named(name: str) -> Workload:
    """The workload called `name`. Raises `NotFound`, naming those that there are."""
    try:
        return WORKLOADS[name]
    except KeyError:
        raise NotFound(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}") from None


__all__ = ["FETCHED", "WORKLOADS", "Scale", "Workload", "workload_named"]
