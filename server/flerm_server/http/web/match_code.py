"""The code that the matcher's page gives: for a training loop, for the Trainer, and by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping


def loop_code(family: str, lr: float, registry: str, step: int | None) -> str:
    """For a training loop of one's own."""
    return (
        "from flerm_client import FLeRM\n"
        "\n"
        "FLeRM.match(\n"
        "    model, optimizer,\n"
        "    probe=batches,  # an iterable of fresh input batches\n"
        f"{_arguments(family, lr, registry, step)}"
        ")\n"
    )


def trainer_code(family: str, lr: float, registry: str, step: int | None) -> str:
    """For Hugging Face's Trainer."""
    return (
        "from flerm_client.integrations.transformers import FLeRMCallback\n"
        "\n"
        f"# trainer = Trainer(model, TrainingArguments(..., learning_rate={lr:.6g}), ...)\n"
        "FLeRMCallback(\n"
        '    mode="match",\n'
        f"{_arguments(family, lr, registry, step)}"
        ").add_to(trainer)\n"
        "trainer.train()\n"
    )


def rates_code(optimizer: str, lr: float, rates: Mapping[str, float]) -> str:
    """An optimiser with a group for each tensor. optimizer: a class of `torch.optim`."""
    lines = "\n".join(f"    {json.dumps(name)}: {rate:.6g}," for name, rate in rates.items())
    return (
        f"rates = {{\n{lines}\n}}\n"
        f"optimizer = torch.optim.{optimizer}(\n"
        f'    [{{"params": [p], "lr": rates.get(name, {lr:.6g})}} '
        "for name, p in model.named_parameters()]\n"
        ")\n"
    )


def _arguments(family: str, lr: float, registry: str, step: int | None) -> str:
    start = "" if step in (None, 1) else f"    start={step},\n"
    return (
        f"    family={json.dumps(family)},\n    lr={lr:.6g},\n{start}"
        f"    registry={json.dumps(registry)},\n"
    )
